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
#   SD2     a draft model with exits: data/mini_models/sd2 (another target: parsakaveh/SD2-SoFT-Draft,
#           with SD2_EXITS 6,9,12)
#   SCALE_TO  7b, 13b, 70b, HxLxI: the target's twin of that size, drafts and heads with it (a GPU; nothing is fetched)
#   BENCH   mini_bench                 DTYPE float32 (another target: float16)
#   TEMPERATURE 0   TOP_P 1   SEED 0   MAX_NEW_TOKENS 256 (another target: 1024)
#   DEVICE auto   RUNTIME eager   BATCH_SIZE 1   NUM_THREADS 1 (another target: PyTorch's)   OVERWRITE (set: start anew)
#   CORPUS  jsonl that the indices of rest and samd are built from (default: a mini corpus, seed 2)
#   REST, SAM  their folders (default: data/BENCH/index/TARGET/...)   STATE cold (recycling, nasd, samd)
#   ARGS    further flags for every method, e.g. ARGS="--limit-per-category 2"
#   JUDGE   set: a verdict on every difference, by the target itself (equal.py --model-path)
#   PAIRED  set: every method decodes the baseline beside it, question by question, and is compared with that
# vanilla-compile, vanilla-frozen (CPU), vanilla-cudagraph, vanilla-compile-graph (GPU) and vanilla-hf (transformers' generate):
# further baselines, for the ladder.
# Sampled answers (TEMPERATURE above 0) are audited against the target's distribution.
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
    SD2=${SD2:-data/mini_models/sd2}
else
    SPS=${SPS:-double7/vicuna-68m} DTYPE=${DTYPE:-float16} MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-1024}
    MEDUSA=${MEDUSA:-FasterDecoding/medusa-vicuna-7b-v1.3}
    HYDRA=${HYDRA:-ankner/hydra-vicuna-7b-v1.3}
    EAGLE=${EAGLE:-yuhuili/EAGLE-Vicuna-7B-v1.3} EAGLE3=${EAGLE3:-} SPECDECPP=${SPECDECPP:-}
    [ -n "${SPACE:-}" ] || SPACE=AntMan/vicuna-v1.3-7b-space MASK_ID=${MASK_ID:-32002}
    [ -n "${SD2:-}" ] || SD2=parsakaveh/SD2-SoFT-Draft SD2_EXITS=${SD2_EXITS:-6,9,12}
fi
BENCH=${BENCH:-mini_bench} TEMPERATURE=${TEMPERATURE:-0} TOP_P=${TOP_P:-1} SEED=${SEED:-0}
[ "$TEMPERATURE" = 0 ] || JUDGE=  # sampled answers differ rightly: they are audited instead
NAME=$(basename "$TARGET")${SCALE_TO:+-twin-$SCALE_TO}
ANSWERS=data/$BENCH/model_answer
INDEX=data/$BENCH/index/$(basename "$TARGET")
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
        --runtime "${RUNTIME:-eager}" --batch-size "${BATCH_SIZE:-1}" ${SCALE_TO:+--scale-to "$SCALE_TO"} \
        ${NUM_THREADS:+--num-threads "$NUM_THREADS"} ${OVERWRITE:+--overwrite} \
        $([ -z "${PAIRED:-}" ] || [ $method = vanilla ] || echo --paired) ${ARGS:-} "$@"
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
        vanilla-compile) RUNTIME=compile run vanilla-compile ;;
        vanilla-frozen) RUNTIME=frozen run vanilla-frozen ;;
        vanilla-cudagraph) RUNTIME=cudagraph run vanilla-cudagraph ;;
        vanilla-compile-graph) RUNTIME=compile-graph run vanilla-compile-graph ;;
        vanilla-hf) RUNTIME=eager BATCH_SIZE=1 run vanilla-hf --engine hf ;;
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
        sd2) run sd2 --drafter-path "$SD2" ${SD2_EXITS:+--exits "$SD2_EXITS"} ;;
        sd2-chain) run sd2-chain --draft chain --drafter-path "$SD2" ${SD2_EXITS:+--exits "$SD2_EXITS"} ;;
        specexec) run specexec --drafter-path "$SPS" ;;
        specexec-specinfer) run specexec-specinfer --gen-type specinfer --drafter-path "$SPS" ;;
        *)
            echo "eval.sh: no method $1; there are: ${ALL[*]}" >&2
            exit 2
            ;;
    esac
}

ALL=(vanilla pld sps lookahead rest recycling recycling-warm nasd samd medusa hydra eagle eagle2)
ALL+=(specexec specexec-specinfer sd2 sd2-chain space)
[ -z "$EAGLE3" ] || ALL+=(eagle3)
[ -z "$SPECDECPP" ] || ALL+=(specdecpp)
failed=0
FILES=() RUNGS=()
for method in vanilla "${@:-${ALL[@]:1}}"; do
    [ ${#FILES[@]} -eq 0 ] || [ "$method" != vanilla ] || continue
    run_method "$method" || { [ $? -eq 1 ] && failed=1; } || exit 2
    case $method in
        space) SPACED=1 ;;
        vanilla-*) RUNGS+=("$(answers_of "$method")") ;;
        *) FILES+=("$(answers_of "$method")") ;;
    esac
done
BASE=${FILES[0]} FILES=("${FILES[@]:1}")

status=0
note_status() {  # note_status N: 2 (bad input) before 1 (a difference) before 3 (a suspicion)
    local rank=(0 2 3 1)
    [ "${rank[$1]:-3}" -le "${rank[$status]}" ] || status=$1
}
compare() {  # compare TARGET BASE FILE...: speedup table, what a step costs, verdicts
    local target=$1 base=$2 own=0
    shift 2
    [ $# -gt 0 ] || set -- "$base"
    if [ -n "${PAIRED:-}" ] && [ "$*" != "$base" ]; then
        "$PYTHON" evaluation/speed.py --profile --file-path "$@" --paired
    else
        "$PYTHON" evaluation/speed.py --profile --file-path "$@" --base-path "$base" \
            ${RUNGS[@]:+--ladder "${RUNGS[@]}"}
    fi
    "$PYTHON" evaluation/equal.py "$base" "$@" \
        ${JUDGE:+--model-path "$target" --device "${DEVICE:-auto}"} \
        ${JUDGE:+${NUM_THREADS:+--num-threads "$NUM_THREADS"}} || own=$?
    if [ -z "${JUDGE:-}" ] && [ $own -eq 1 ] && { [ "$DTYPE" != float32 ] || [ "$TEMPERATURE" != 0 ]; }; then
        own=0  # half precision flips near-ties, sampling draws other tokens
    fi
    note_status $own
    if [ "$TEMPERATURE" != 0 ]; then
        own=0
        "$PYTHON" evaluation/audit_sampling.py "$base" "$@" || own=$?
        note_status $own
    fi
}
compare "$TARGET" "$BASE" ${FILES[@]:+"${FILES[@]}"}
if [ -n "${SPACED:-}" ]; then
    RUNGS=()
    compare "$SPACE" "$(answers_of vanilla-space)" "$(answers_of space)"
fi
[ $failed -eq 0 ] || note_status 1
exit $status
