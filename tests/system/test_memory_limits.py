"""How much memory there is, as the machine and the containers around a process say."""

from __future__ import annotations

from slmctl.system import memory

GB = 2**30


def groups(tmp_path, lines, files):
    own = tmp_path / "cgroup"
    own.write_text("\n".join(lines) + "\n")
    for name, content in files.items():
        path = tmp_path / "fs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return list(memory._cgroups(tmp_path / "fs", own))


def test_groups_of_version_2_are_read_up_to_the_top(tmp_path):
    found = groups(
        tmp_path,
        ["0::/a/b"],
        {
            "a/b/memory.max": "max\n",
            "a/b/memory.current": "5\n",
            "a/b/memory.stat": "inactive_file 1\n",
            "a/memory.max": str(4 * GB),
            "a/memory.current": str(3 * GB),
            "a/memory.stat": f"anon 7\ninactive_file {GB}\n",
            "memory.max": str(9 * GB),
            "memory.current": "0",
            "memory.stat": "",
        },
    )
    assert found == [(4 * GB, 2 * GB), (9 * GB, 0)]


def test_groups_of_version_1_are_read_beside_those_without_a_limit(tmp_path):
    found = groups(
        tmp_path,
        ["5:cpu:/x", "4:memory:/x", "0::/"],
        {
            "memory/x/memory.limit_in_bytes": str(GB),
            "memory/x/memory.usage_in_bytes": str(GB // 2),
            "memory/x/memory.stat": f"total_inactive_file {GB // 4}\n",
            "cpu/x/memory.limit_in_bytes": "1",
        },
    )
    assert found == [(GB, GB // 4)]


def test_outside_of_groups_there_is_nothing_to_read(tmp_path):
    assert list(memory._cgroups(tmp_path / "fs", tmp_path / "absent")) == []


def test_the_smallest_limit_counts(monkeypatch):
    monkeypatch.setattr(memory, "_meminfo", {"MemTotal": 8 * GB, "MemAvailable": 6 * GB}.get)
    monkeypatch.setattr(memory, "_cgroups", lambda: iter([(4 * GB, GB), (10 * GB, 9 * GB)]))
    assert memory.memory_limit() == 4 * GB
    assert memory.memory_available() == GB
    monkeypatch.setattr(memory, "_cgroups", lambda: iter([]))
    assert memory.memory_limit() == 8 * GB
    assert memory.memory_available() == 6 * GB


def test_this_machine_has_more_than_it_has_left():
    assert memory.memory_limit() >= memory.memory_available() > 0
