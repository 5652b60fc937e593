"use strict";
(() => {
  const $ = (selector, within = document) => within.querySelector(selector);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];

  // --- theme: kept in this page only ---
  const toggle = $("#theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const label = () => { toggle.textContent = isDark() ? "Light theme" : "Dark theme"; };
  toggle.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    label();
  });
  system.addEventListener("change", label);
  label();
  toggle.hidden = false;

  // --- where one is on the page ---
  const links = new Map(all("nav a").map((a) => [a.hash.slice(1), a]));
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      links.forEach((a) => a.removeAttribute("aria-current"));
      links.get(target.id)?.setAttribute("aria-current", "location");
    }
  }, { rootMargin: "-20% 0px -75% 0px" });
  all("main > section").forEach((section) => seen.observe(section));

  // --- highlighted text ---
  const block = $("#tokens");
  if (!block) return;
  const { arms, documents } = JSON.parse(block.textContent);
  const tip = $("#tip");
  const texts = all(".tokens");
  const choices = all(".choice input");
  let arm = Math.max(0, choices.findIndex((c) => c.checked));
  let shown = null;  // the token that the tooltip is about

  const loss = (value) => (value === null ? "–" : value.toFixed(3).replace("-", "−"));
  const facts = (token) => {
    const text = token.parentElement;
    const data = documents[text.dataset.document];
    const i = token.index;
    const live = data.live[arm][i], ref = data.ref[i];
    const excess = live === null || ref === null ? null : live - ref;
    return { kept: data.selected[arm][i] === 1, position: data.position[i], rows: [["live", loss(live)], ["reference", loss(ref)], ["excess", loss(excess)]] };
  };
  const make = (tag, text, parent, name) => {
    const element = document.createElement(tag);
    element.textContent = text;
    if (name) element.className = name;
    parent.append(element);
    return element;
  };
  const show = (token) => {
    if (shown === token && !tip.hidden) return;
    hide();
    shown = token;
    const found = facts(token);
    token.classList.add("here");
    tip.replaceChildren();
    const head = make("p", "", tip, "head");
    make("bdi", token.textContent.trim() || "space", head);
    make("p", `${found.kept ? "would be trained on" : "would be left out"} by ${arms[arm]}${found.position === null ? "" : `, position ${found.position}`}`, tip, "state");
    const list = make("dl", "", tip);
    for (const [name, value] of found.rows) {
      const row = make("div", "", list);
      make("dt", `${name} loss `, row);
      make("dd", value, row);
    }
    tip.hidden = false;
    place();
  };
  const place = () => {
    if (!shown) return;
    const at = shown.getClientRects()[0] ?? shown.getBoundingClientRect();
    const { width, height } = tip.getBoundingClientRect();
    const room = document.documentElement.clientWidth;
    tip.style.left = `${Math.max(8, Math.min(at.left, room - width - 8))}px`;
    tip.style.top = `${at.top - height - 8 > 0 ? at.top - height - 8 : at.bottom + 8}px`;
  };
  const hide = () => {
    tip.hidden = true;
    shown?.classList.remove("here");
    shown = null;
  };

  const choose = () => {
    texts.forEach((text) => {
      const { selected } = documents[text.dataset.document];
      [...text.children].forEach((token, i) => {
        token.classList.toggle("kept", selected[arm][i] === 1);
        token.setAttribute("aria-selected", String(selected[arm][i] === 1));
      });
      const kept = selected[arm].reduce((a, b) => a + b, 0), total = selected[arm].length;
      $(`.share[data-document="${text.dataset.document}"]`).textContent =
        `${kept.toLocaleString("en")} of ${total.toLocaleString("en")} tokens would be trained on (${(100 * kept / total).toFixed(1)}%)`;
    });
    hide();
  };

  // A text is one stop of the Tab key: a list whose options are its tokens.
  const move = (text, i) => {
    const tokens = text.children;
    const to = Math.max(0, Math.min(tokens.length - 1, i));
    tokens[text.at]?.removeAttribute("id");
    text.at = to;
    tokens[to].id = `token-${text.dataset.document}`;
    text.setAttribute("aria-activedescendant", tokens[to].id);
    tokens[to].scrollIntoView({ block: "nearest", inline: "nearest" });
    show(tokens[to]);
  };
  const line = (text, way) => {  // the nearest token of the line above or below
    const from = text.children[text.at].getClientRects()[0];
    let best = text.at, distance = Infinity, row = null;
    for (let i = text.at + way; i >= 0 && i < text.children.length; i += way) {
      const at = text.children[i].getClientRects()[0];
      if (!at || Math.abs(at.top - from.top) < 4) continue;
      if (row !== null && Math.abs(at.top - row) >= 4) break;
      row = at.top;
      if (Math.abs(at.left - from.left) < distance) [best, distance] = [i, Math.abs(at.left - from.left)];
    }
    return best;
  };
  texts.forEach((text) => {
    text.setAttribute("role", "listbox");
    text.setAttribute("aria-multiselectable", "true");
    text.setAttribute("aria-readonly", "true");
    text.setAttribute("aria-describedby", "text-help");
    text.tabIndex = 0;
    text.at = 0;
    [...text.children].forEach((token, i) => {
      token.index = i;
      token.setAttribute("role", "option");
    });
    text.addEventListener("keydown", (event) => {
      if (event.key === "Escape") return hide();
      if (event.ctrlKey || event.altKey || event.metaKey) return;
      const next = {
        ArrowRight: () => text.at + 1, ArrowLeft: () => text.at - 1, Home: () => 0, End: () => text.children.length - 1,
        ArrowDown: () => line(text, 1), ArrowUp: () => line(text, -1),
      }[event.key];
      if (!next) return;
      event.preventDefault();
      move(text, next());
    });
    text.addEventListener("focus", () => { if (text.matches(":focus-visible")) move(text, text.at); });
    text.addEventListener("blur", hide);
    text.addEventListener("pointerover", (event) => { if (event.target.parentElement === text) show(event.target); });
    text.addEventListener("pointerleave", hide);
    text.addEventListener("click", (event) => { if (event.target.parentElement === text) move(text, event.target.index); });
  });
  document.addEventListener("scroll", place, { capture: true, passive: true });  // of the page or of a text's own box
  addEventListener("resize", place);
  addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
  choices.forEach((choice, i) => choice.addEventListener("change", () => { arm = i; choose(); }));
  $(".choice").hidden = false;
  choose();
})();
