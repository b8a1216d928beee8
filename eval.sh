#!/usr/bin/env bash
# Runs methods over a bench, then prints the speedup table and the equality verdicts.
#
#   ./eval.sh                      all methods on the mini models that come with the project: CPU, minutes
#   ./eval.sh pld sps              some of them (vanilla, the baseline, always runs)
#   TARGET=lmsys/vicuna-7b-v1.3 BENCH=spec_bench ./eval.sh pld
#                                  a published target on Spec-Bench's 480 questions: one A100 or H100,
#                                  about an hour a method
#   ./eval.sh --setup              only prepare .venv and print its python
#
# Settings from the environment, with their defaults:
#   TARGET  data/mini_models/target    SPS   data/mini_models/sps (another target: double7/vicuna-68m)
#   MEDUSA HYDRA EAGLE EAGLE3  heads: data/mini_models/... (another target: those published for
#           vicuna-7b-v1.3; for EAGLE-3 there is none, so eagle3 runs only where EAGLE3 is set)
#   SPACE   a target fine-tuned for it: data/mini_models/space (another target: AntMan/vicuna-v1.3-7b-space
#           with MASK_ID 32002); its baseline is vanilla on that model, compared in a table of its own
#   SPECDECPP  acceptance head of SPS: data/mini_models/specdecpp (another target: none)
#   BENCH   mini_bench                 DTYPE float32 (another target: float16)
#   TEMPERATURE 0   TOP_P 1   SEED 0   MAX_NEW_TOKENS 256 (another target: 1024)
#   DEVICE auto   RUNTIME eager   BATCH_SIZE 1   NUM_THREADS 1 (another target: PyTorch's)   OVERWRITE (set: start anew)
#   CORPUS  jsonl that the indices of rest and samd are built from (default: a mini corpus, seed 2)
#   REST, SAM  their folders (default: data/BENCH/index/TARGET/...)   STATE cold (recycling, nasd, samd)
#   ARGS    further flags for every method, e.g. ARGS="--limit-per-category 2"
#   PYTHON  an existing environment's interpreter, used as it is
set -euo pipefail
cd "$(dirname "$0")"

setup() {  # makes .venv when it is missing or requirements.txt changed; prints the interpreter
    if [ -n "${PYTHON:-}" ]; then
        echo "$PYTHON"
        return
    fi
    local stamp=.venv/.requirements wanted
    wanted=$(cat requirements.txt requirements-dev.txt)
    if [ ! -x .venv/bin/python ] || [ "$(cat $stamp 2>/dev/null)" != "$wanted" ]; then
        echo "setting up .venv" >&2
        local base
        for base in python3 python3.12 python3.11 python3.10 ""; do
            "$base" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
                2> /dev/null && break
        done
        if [ -z "$base" ]; then
            echo "eval.sh: no Python 3.10 to 3.12 found; PYTHON=... names one" >&2
            exit 2
        fi
        "$base" -m venv .venv >&2 || exit 2
        .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt >&2 ||
            exit 2
        echo "$wanted" > $stamp
    fi
    echo .venv/bin/python
}

PYTHON=$(setup) || exit 2
if [ "${1:-}" = --setup ]; then
    echo "$PYTHON"
    exit
fi

MINI=data/mini_models/target
TARGET=${TARGET:-$MINI}
if [ "$TARGET" = $MINI ]; then  # one thread: the mini models are too small for more
    NUM_THREADS=${NUM_THREADS:-1}
    SPS=${SPS:-data/mini_models/sps} DTYPE=${DTYPE:-float32} MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-256}
    MEDUSA=${MEDUSA:-data/mini_models/medusa} HYDRA=${HYDRA:-data/mini_models/hydra}
    EAGLE=${EAGLE:-data/mini_models/eagle} EAGLE3=${EAGLE3:-data/mini_models/eagle3}
    SPECDECPP=${SPECDECPP:-data/mini_models/specdecpp} SPACE=${SPACE:-data/mini_models/space}
else
    SPS=${SPS:-double7/vicuna-68m} DTYPE=${DTYPE:-float16} MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-1024}
    MEDUSA=${MEDUSA:-FasterDecoding/medusa-vicuna-7b-v1.3}
    HYDRA=${HYDRA:-ankner/hydra-vicuna-7b-v1.3}
    EAGLE=${EAGLE:-yuhuili/EAGLE-Vicuna-7B-v1.3} EAGLE3=${EAGLE3:-} SPECDECPP=${SPECDECPP:-}
    [ -n "${SPACE:-}" ] || SPACE=AntMan/vicuna-v1.3-7b-space MASK_ID=${MASK_ID:-32002}
fi
BENCH=${BENCH:-mini_bench} TEMPERATURE=${TEMPERATURE:-0} TOP_P=${TOP_P:-1} SEED=${SEED:-0}
NAME=$(basename "$TARGET")
ANSWERS=data/$BENCH/model_answer
INDEX=data/$BENCH/index/$NAME
REST=${REST:-$INDEX/rest} SAM=${SAM:-$INDEX/samd}
answers_of() { echo "$ANSWERS/$NAME-$1-$DTYPE-temperature-$TEMPERATURE.jsonl"; }

run() {  # run NAME FLAG...: one method (NAME up to its dash) with the flags that all share
    local name=$1 method=${1%%-*}
    shift
    echo "== $name" >&2
    "$PYTHON" -m "model.$method.inference_$method" \
        --model-path "$TARGET" --model-id "$NAME-$name-$DTYPE-temperature-$TEMPERATURE" \
        --bench-name "$BENCH" --dtype "$DTYPE" --temperature "$TEMPERATURE" --top-p "$TOP_P" \
        --seed "$SEED" --max-new-tokens "$MAX_NEW_TOKENS" --device "${DEVICE:-auto}" \
        --runtime "${RUNTIME:-eager}" --batch-size "${BATCH_SIZE:-1}" \
        ${NUM_THREADS:+--num-threads "$NUM_THREADS"} ${OVERWRITE:+--overwrite} ${ARGS:-} "$@"
}

index() {  # index MODULE FOLDER: build a corpus index that is not there; CORPUS is ours by default
    [ ! -e "$2/manifest.json" ] || return 0
    if [ -z "${CORPUS:-}" ]; then
        CORPUS=$INDEX/corpus.jsonl
        mkdir -p "$INDEX"
        [ -e "$CORPUS" ] || "$PYTHON" data/mini_bench/generate.py corpus --num-conversations 20000 \
            --seed 2 --output "$CORPUS" >&2
    fi
    "$PYTHON" -m "model.$1" --model-path "$TARGET" --input "$CORPUS" --output "$2" >&2
}

run_method() {
    case $1 in
        vanilla) run vanilla ;;
        pld) run pld ;;
        sps) run sps --drafter-path "$SPS" ;;
        lookahead) run lookahead ;;
        recycling) run recycling --state "${STATE:-cold}" ;;
        recycling-warm) run recycling-warm --state warm --prompt-seeds ;;
        nasd) run nasd --state "${STATE:-cold}" ;;
        medusa) run medusa --medusa-path "$MEDUSA" ;;
        hydra) run hydra --hydra-path "$HYDRA" ;;
        eagle) run eagle --eagle-path "$EAGLE" ;;
        eagle2) run eagle2 --eagle-path "$EAGLE" ;;
        eagle3) run eagle3 --eagle-path "${EAGLE3:?eval.sh: eagle3 needs EAGLE3=head}" ;;
        rest)
            index rest.build_datastore "$REST"
            run rest --datastore-path "$REST" ;;
        samd)
            index samd.build_sam "$SAM"
            run samd --static-path "$SAM" --auxiliary recycling --state "${STATE:-cold}" ;;
        specdecpp)
            : "${SPECDECPP:?eval.sh: specdecpp needs SPECDECPP=head}"
            run specdecpp --drafter-path "$SPS" --head-path "$SPECDECPP" ;;
        space)  # its target is fine-tuned, and its baseline is vanilla on that model
            local status=0
            run vanilla-space --model-path "$SPACE" || status=$?
            [ $status -le 1 ] || return $status
            run space --model-path "$SPACE" ${MASK_ID:+--mask-id $MASK_ID} || status=$?
            return $status ;;
        specexec) run specexec --drafter-path "$SPS" ;;
        specexec-specinfer) run specexec-specinfer --gen-type specinfer --drafter-path "$SPS" ;;
        *)
            echo "eval.sh: no method $1; there are: ${ALL[*]}" >&2
            exit 2
            ;;
    esac
}

ALL=(vanilla pld sps lookahead rest recycling recycling-warm nasd samd medusa hydra eagle eagle2)
ALL+=(specexec specexec-specinfer space)
[ -z "$EAGLE3" ] || ALL+=(eagle3)
[ -z "$SPECDECPP" ] || ALL+=(specdecpp)
failed=0
FILES=()
for method in vanilla "${@:-${ALL[@]:1}}"; do
    [ ${#FILES[@]} -eq 0 ] || [ "$method" != vanilla ] || continue
    run_method "$method" || { [ $? -eq 1 ] && failed=1; } || exit 2
    if [ "$method" = space ]; then SPACED=1; else FILES+=("$(answers_of "$method")"); fi
done
BASE=${FILES[0]} FILES=("${FILES[@]:1}")

status=0
compare() {  # compare BASE FILE...: the speedup table and the equality verdicts
    local base=$1 own=0
    shift
    "$PYTHON" evaluation/speed.py --file-path "${@:-$base}" --base-path "$base"
    "$PYTHON" evaluation/equal.py "$base" "${@:-$base}" || own=$?
    [ $own -le $status ] || status=$own
}
compare "$BASE" ${FILES[@]:+"${FILES[@]}"}
[ -z "${SPACED:-}" ] || compare "$(answers_of vanilla-space)" "$(answers_of space)"
if [ "$DTYPE" != float32 ] || [ "$TEMPERATURE" != 0 ]; then
    [ $status -ne 1 ] || status=0  # half precision flips near-ties, sampling draws other tokens
fi
exit $((status > failed ? status : failed))
