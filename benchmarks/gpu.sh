#!/usr/bin/env bash
# Everything that is measured on one GPU, in one go: the CUDA tests, the head's variants, training steps of three models beside
# what a user would write today, and scoring. Raw figures go to the folder that is given (default benchmarks/results/gpu).
#
#   bash benchmarks/gpu.sh [FOLDER]            about half an hour on an H100
#   TINY=1 bash benchmarks/gpu.sh FOLDER       the same on a tiny shape and the CPU, to see that it runs
#
# PYTHON names the interpreter. LIMIT is the most seconds that one measurement may take: what takes longer is left out.
set -u
out=${1:-benchmarks/results/gpu}
python=${PYTHON:-python}
limit=${LIMIT:-420}
mkdir -p "$out"

measure() { # name, command…
    local name=$1
    shift
    echo "== $name: $*"
    timeout "$limit" "$@" >"$out/$name.log" 2>&1 || echo "   failed or too slow ($?); see $out/$name.log"
    grep -v -i warning "$out/$name.log" | tail -n 12
}

if [ -n "${TINY:-}" ]; then
    device=(--device cpu --precision float32)
    measure head "$python" benchmarks/head.py --rounds 1 --shapes V=4k --output "$out/head.json"
    measure step "$python" benchmarks/step.py "${device[@]}" --shapes tiny --seq-len 64 --steps 2 --output "$out/step.json"
    measure step-recompute "$python" benchmarks/step.py "${device[@]}" --shapes tiny --seq-len 64 --steps 2 \
        --arms clm slm --recompute full --output "$out/step-recompute.json"
    exit 0
fi

nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.max.sm --format=csv >"$out/gpu.csv" 2>&1
gpu=(--device cuda --precision bf16_autocast --seq-len 2048 --steps 5 --warmup 3)
measure tests "$python" -m pytest -q tests/test_cuda.py
measure head "$python" benchmarks/head.py --device cuda --dtype bfloat16 --output "$out/head.json"
measure step-smollm2 "$python" benchmarks/step.py "${gpu[@]}" --shapes smollm2-135m --micro 16 --output "$out/step-smollm2.json"
measure step-qwen "$python" benchmarks/step.py "${gpu[@]}" --shapes qwen2.5-0.5b --micro 8 --output "$out/step-qwen.json"
measure step-tinyllama "$python" benchmarks/step.py "${gpu[@]}" --shapes tinyllama-1.1b --micro 8 --output "$out/step-tinyllama.json"
measure mfu-tinyllama-16 "$python" benchmarks/step.py "${gpu[@]}" --shapes tinyllama-1.1b --micro 16 --accumulate 2 \
    --arms clm slm trunk --output "$out/mfu-tinyllama-16.json"
measure mfu-tinyllama-recompute "$python" benchmarks/step.py "${gpu[@]}" --shapes tinyllama-1.1b --micro 32 \
    --arms clm slm --recompute selective --output "$out/mfu-tinyllama-recompute.json"
measure mfu-tinyllama-sharded "$python" benchmarks/step.py "${gpu[@]}" --shapes tinyllama-1.1b --micro 16 --accumulate 2 \
    --arms clm slm --sharding full --output "$out/mfu-tinyllama-sharded.json"
measure memory "$python" benchmarks/step.py "${gpu[@]}" --shapes qwen2.5-0.5b --micro 8 --arms trunk clm slm naive --steps 1 \
    --output "$out/memory.json"
measure score "$python" benchmarks/score.py --device cuda --output "$out/score.json"
