#!/usr/bin/env bash
# Runs methods over a bench and prints one table of them: accepted tokens, speedup, verdict, drift.
#
#   ./eval.sh                      eight methods on 24 questions of the mini bench, on the mini models that come with
#                                  the project: CPU, 3 minutes (its answers have names of their own, NAME-quick-...)
#   ./eval.sh all                  all methods on all 76 questions
#   ./eval.sh pld sps              some of them (vanilla, the baseline, always runs)
#   TARGET=lmsys/vicuna-7b-v1.3 BENCH=spec_bench ./eval.sh pld
#                                  a published target on Spec-Bench's 480 questions: one A100 or H100,
#                                  about an hour a method; with another TARGET or BENCH no argument means all
#   python data/download.py spec_bench; python data/download.py smollm2
#   TARGET=smollm2 BENCH=spec_bench ARGS="--limit-per-category 10" ./eval.sh
#                                  a published model of 135 M on a CPU (gemma3-270m: another), 60 questions: at 25
#                                  tokens/s some ten minutes a method
#   ./eval.sh serve                under a load: latencies, throughput, energy (evaluation/serve.sh has its settings)
#   ENGINE_CMD="vllm serve ..." ENGINE_BASE="vllm serve ..." ./eval.sh engine
#                                  a server that speculates beside the same server without (started and ended here, each in its
#                                  turn), at ENGINE_URL (http://127.0.0.1:8000); without ENGINE_CMD: the server that is there
#   ./eval.sh --setup              only prepare .venv and print its python
#
# Settings from the environment, with their defaults:
#   TARGET  data/mini_models/target    BENCH mini_bench    DTYPE float32 (another target: float16)
#           smollm2, gemma3-270m: data/models/NAME, as data/download.py makes it, in float32, MAX_NEW_TOKENS 128
#   SPACE   a target fine-tuned for it: data/mini_models/space (another target: AntMan/vicuna-v1.3-7b-space; smollm2: none);
#           its baseline is vanilla on that model, compared in a table of its own
#   FLAGS_row  further flags of a row: FLAGS_eagle3="--eagle-path DIR --total-token 32" ./eval.sh eagle3
#           (- in a row's name is _ here). Weights that are known for a target need no flag: see --help
#   SCALE_TO  7b, 13b, 70b, HxLxI: the target's twin of that size, drafts and heads with it, but dflash's and dspark's (a GPU; nothing is fetched)
#   TEMPERATURE 0   TOP_P 1   SEED 0   MAX_NEW_TOKENS 256 (another target: 1024)
#   DEVICE auto   RUNTIME eager   BATCH_SIZE 1   NUM_THREADS 1 (another target: PyTorch's)   OVERWRITE (set: start anew)
#   CORPUS  jsonl that the indices of rest and samd are built from (default: a mini corpus, seed 2; another target: none,
#           rest is left out, samd copies from the text alone)
#   REST, SAM  their folders (default: data/BENCH/index/TARGET/...)   STATE cold (recycling, nasd, samd, suffix)
#   ARGS    further flags for every method, e.g. ARGS="--limit-per-category 2"; words as in a shell, nothing is expanded:
#           ARGS="--question-file 'my questions.jsonl'" (so in FLAGS_row and LOAD)
#   LOAD    flags of a load run, e.g. LOAD="--rate 1,2 --duration 60"; the table is then serving.py's, SLO="ttft=0.5,tpot=0.05"
#   JUDGE   set: a verdict on every difference, by the target itself (equal.py --model-path)
#   PAIRED  N: methods decode the baseline on every N-th question too, for the drift between the files (default 8, without arguments 4; 0: none);
#           1: on every question, and each method is compared with that baseline of its own
# vanilla-compile, vanilla-cudagraph (GPU) and vanilla-hf (transformers' generate): further baselines, for the ladder.
# Sampled answers (TEMPERATURE above 0) are audited against the target's distribution.
#   PYTHON  an existing environment's interpreter, used as it is
# A method that cannot run (all: no weights for the target) is left out with a line. The full tables, the reports of
# the tools as JSON, what each method said and a page of it all (report.html) lie beside the answers, in NAME-...-report/.
# Exit status: 0; 1 answers differ, or questions failed; 2 bad input, a crash; 3 a suspicion (JUDGE); 130 interrupted.
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

case "${*: -1}" in
    -h | --help)
        sed -n '2,/^set -euo/{/^#/p}' eval.sh
        [ "$1" != serve ] || sed -n '/^#/p' evaluation/serve.sh
        exit ;;
esac
PYTHON=$(setup) || exit 2
if [ "${1:-}" = --setup ]; then
    echo "$PYTHON"
    exit
fi

SPLIT='import os, shlex, sys
name, text = sys.argv[1:]
try:
    words = shlex.split(text)
except ValueError as error:
    sys.exit(f"eval.sh: {name}={text}: {error}")
sys.stdout.buffer.write(b"".join(os.fsencode(word) + b"\0" for word in words))'
read_words() {  # read_words ARRAY SETTING: the words of a setting, quotes as in a shell
    local -n into=$1
    local text=${!2:-}
    into=()
    [ -n "$text" ] || return 0
    mapfile -d '' -t into < <("$PYTHON" -c "$SPLIT" "$2" "$text")
    wait $! || exit 2
}
read_words ARGS ARGS
read_words LOAD LOAD

BASELINE=vanilla MODE= SPS=()
case ${1:-} in
    serve)
        MODE=$1
        shift
        . evaluation/serve.sh ;;
    engine)
        [ $# -eq 1 ] || { echo "eval.sh: engine takes no methods: ENGINE_CMD says how the server speculates" >&2; exit 2; }
        [ -n "${ENGINE_CMD:-}" ] || [ -z "${ENGINE_BASE:-}" ] || { echo "eval.sh: ENGINE_BASE needs ENGINE_CMD" >&2; exit 2; }
        MODE=$1 BASELINE=${ENGINE_BASE:+engine-base} ENGINE_URL=${ENGINE_URL:-http://127.0.0.1:8000}
        shift ;;
esac
QUICK=(pld sps lookahead recycling medusa eagle2 eagle3 specexec)  # what a first look shows
MINI=data/mini_models/target
TARGET=${TARGET:-$MINI}
if [ "$TARGET" = $MINI ]; then  # one thread: the mini models are too small for more
    NUM_THREADS=${NUM_THREADS:-1} DTYPE=${DTYPE:-float32} MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-256}
    SPACE=${SPACE:-data/mini_models/space}
elif [[ " smollm2 gemma3-270m " == *" ${TARGET#data/models/} "* ]]; then  # made by data/download.py; run on a CPU
    TARGET=data/models/${TARGET#data/models/} DTYPE=${DTYPE:-float32} MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-128}
    SPACE=${SPACE:-}
else
    DTYPE=${DTYPE:-float16} MAX_NEW_TOKENS=${MAX_NEW_TOKENS:-1024}
    SPACE=${SPACE:-AntMan/vicuna-v1.3-7b-space}
fi
BENCH=${BENCH:-mini_bench} TEMPERATURE=${TEMPERATURE:-0} TOP_P=${TOP_P:-1} SEED=${SEED:-0}
[ "$TEMPERATURE" = 0 ] || JUDGE=  # sampled answers differ rightly: they are audited instead
NAME=$(basename "$TARGET" .gguf)${SCALE_TO:+-twin-$SCALE_TO} OPTIONAL= MORE=
if [ $# -eq 0 ] && [ -z "$MODE" ] && [ "$TARGET$BENCH${SCALE_TO:-}" = ${MINI}mini_bench ]; then
    set -- "${QUICK[@]}"
    NAME+=-quick ARGS=(--limit-per-category 4 ${ARGS[@]:+"${ARGS[@]}"}) PAIRED=${PAIRED:-4} OPTIONAL=1
    MORE="all methods on all questions, some 12 minutes: ./eval.sh all"
fi
[ $# -gt 0 ] || [ -n "$MODE" ] || set -- all
ANSWERS=data/$BENCH/model_answer
KIND=${LOAD:+-load}
[ "$MODE" != engine ] || KIND=-engine$KIND
REPORT=$ANSWERS/$NAME-$DTYPE-temperature-$TEMPERATURE$KIND-report
INDEX=data/$BENCH/index/$(basename "$TARGET")
REST=${REST:-$INDEX/rest}
if [ "$TARGET" = $MINI ] || [ -n "${CORPUS:-}" ] || [ -e "$INDEX/samd/manifest.json" ]; then
    SAM=${SAM:-$INDEX/samd}
fi
id_of() { echo "$NAME-$1-$DTYPE-temperature-$TEMPERATURE"; }
answers_of() { echo "$ANSWERS/$(id_of "$1").jsonl"; }
written_by() {  # written_by ROW: its answer files; under a load one a rate, those that its run has opened
    if [ -n "${LOAD:-}" ]; then
        find "$ANSWERS" -maxdepth 1 -newer "$REPORT/$1.begin" -name "$(id_of "$1")-*.jsonl" | sort -V
    else
        answers_of "$1"
    fi
}

answer() {  # answer ROW MODULE FLAG...: a command with the flags that all share, and those of the row
    local row=$1 module=$2 code=0 own written
    shift 2
    read_words own "FLAGS_${row//-/_}"
    touch "$REPORT/$row.begin"
    "$PYTHON" -m "$module" --model-path "$TARGET" --model-id "$(id_of "$row")" --bench-name "$BENCH" \
        --dtype "$DTYPE" --temperature "$TEMPERATURE" --top-p "$TOP_P" --seed "$SEED" \
        --max-new-tokens "$MAX_NEW_TOKENS" --batch-size "${BATCH_SIZE:-1}" ${OVERWRITE:+--overwrite} "$@" \
        ${own[@]:+"${own[@]}"} || code=$?
    mapfile -t written < <(written_by "$row")
    if [ $code -eq 1 ] && [ -z "$(find ${written[@]:+"${written[@]}"} /dev/null -maxdepth 0 -newer "$REPORT/$row.begin")" ]; then
        code=70  # 1 says that questions failed, and of Python that it did not come to answer any
    fi
    return $code
}

run() {  # run NAME FLAG...: one method (NAME up to its dash) on this machine
    local name=$1 method=${1%%-*} products=$PRODUCTS
    [ "$name" != vanilla-hf ] || products=
    shift
    answer "$name" "model.$method.inference_$method" \
        --device "${DEVICE:-auto}" --runtime "${RUNTIME:-eager}" ${SCALE_TO:+--scale-to "$SCALE_TO"} \
        ${NUM_THREADS:+--num-threads "$NUM_THREADS"} ${products:+--turned-rows "$products"} \
        $([ -z "${PAIRED:-}" ] || [ $method = vanilla ] || echo --paired "$PAIRED") \
        ${LOAD[@]:+"${LOAD[@]}"} ${ARGS[@]:+"${ARGS[@]}"} "$@"
}

serve_engine() {  # serve_engine ROW COMMAND FLAG...: a server, started by COMMAND if there is one
    local row=$1 command=$2
    shift 2
    answer "$row" model.engine.inference_engine --url "$ENGINE_URL" ${command:+--engine-cmd "$command"} \
        ${LOAD[@]:+"${LOAD[@]}"} ${ARGS[@]:+"${ARGS[@]}"} "$@"
}

index() {  # index MODULE FOLDER: build a corpus index that is not there; CORPUS is ours by default, of the mini target
    [ ! -e "$2/manifest.json" ] || return 0
    if [ -z "${CORPUS:-}" ] && [ "$TARGET" != $MINI ]; then
        echo "eval.sh: no index in $2, and CORPUS names no jsonl to build it from" >&2
        return 2
    fi
    if [ -z "${CORPUS:-}" ]; then
        CORPUS=$INDEX/corpus.jsonl
        mkdir -p "$INDEX"
        [ -e "$CORPUS" ] || "$PYTHON" data/mini_bench/generate.py corpus --num-conversations 20000 \
            --seed 2 --output "$CORPUS" || return 2
    fi
    "$PYTHON" -m "model.$1" --model-path "$TARGET" --input "$CORPUS" --output "$2" ||
        return $(($? > 1 ? $? : 70))
}

run_method() {  # run_method ROW: its method is its name up to the dash
    case $1 in
        engine) serve_engine "$1" "${ENGINE_CMD:-}" ;;
        engine-base) serve_engine "$1" "$ENGINE_BASE" $([ -n "${LOAD:-}" ] || echo --aa) ;;
        vanilla-compile) RUNTIME=compile run "$1" ;;
        vanilla-cudagraph) RUNTIME=cudagraph run "$1" ;;
        vanilla-hf) RUNTIME=eager BATCH_SIZE=1 run "$1" --engine hf ;;
        recycling-warm) run "$1" --state warm --prompt-seeds ;;
        recycling | recycling-* | nasd | nasd-* | suffix | suffix-*) run "$1" --state "${STATE:-cold}" ;;
        rest | rest-*)
            index rest.build_datastore "$REST" || return
            run "$1" --datastore-path "$REST" ;;
        samd | samd-*)
            if [ -n "${SAM:-}" ]; then
                index samd.build_sam "$SAM" || return
            else
                echo "eval.sh: $1 copies from the text alone: CORPUS names no corpus" >&2
            fi
            run "$1" ${SAM:+--static-path "$SAM"} --auxiliary recycling --state "${STATE:-cold}" ;;
        space)  # its target is fine-tuned, and its baseline is vanilla on that model
            [ -n "$SPACE" ] || { echo "eval.sh: SPACE names no target that is fine-tuned for it" >&2; return 2; }
            local status=0
            run vanilla-space --model-path "$SPACE" || status=$?
            [ $status -le 1 ] || return $status
            run space --model-path "$SPACE" || status=$?
            return $status ;;
        sps) run "$1" ${SPS[@]:+"${SPS[@]}"} ;;
        sd2-chain) run "$1" --draft chain ;;
        specexec-specinfer) run "$1" --gen-type specinfer ;;
        *) run "$1" ;;
    esac
}

logged() {  # logged ROW: run it; what it says on stderr is kept, too, for the end. Its bar is on stdout, our stderr
    echo "== $1" >&2
    run_method "$1" 3>&2 2>&1 >&3 | tee "$REPORT/$1.log" >&2
}

ALL=(vanilla)
for folder in model/*/inference_*.py; do
    method=$(basename "$(dirname "$folder")")
    [[ " vanilla engine " == *" $method "* ]] || ALL+=("$method")  # engine: a server, by its URL
    case $method in
        recycling) ALL+=(recycling-warm) ;;
        sd2) ALL+=(sd2-chain) ;;
        specexec) ALL+=(specexec-specinfer) ;;
    esac
done
ROWS=($BASELINE) PRODUCTS=
[ "$MODE" != engine ] || ROWS+=(engine)
for row in "$@"; do
    if [[ ! $row =~ ^[a-z0-9_-]+$ ]]; then
        echo "eval.sh: no method $row; there are: ${ALL[*]}" >&2
        exit 2
    fi
    if [ "${PAIRED:-}" = 1 ] && [[ $row == vanilla-* ]]; then
        echo "eval.sh: PAIRED=1 has a baseline a method, and no ladder: drop $row or PAIRED" >&2
        exit 2
    fi
    # a name of your own needs flags that say what it is: FLAGS_sps_long="--num-draft 12"
    own=FLAGS_${row//-/_} known=" ${ALL[*]} all vanilla-compile vanilla-cudagraph vanilla-hf "
    if [[ $known != *" $row "* ]] && { [ -z "${!own:-}" ] || [ ! -f "model/${row%%-*}/inference_${row%%-*}.py" ]; }; then
        echo "eval.sh: no method $row; there are: ${ALL[*]}" >&2
        exit 2
    fi
    if [ "$row" = all ]; then
        ROWS+=("${ALL[@]}") OPTIONAL=1
    else
        ROWS+=("$row")
    fi
done

status=0
note_status() {  # note_status N: 2 (bad input) before 1 (a difference) before 3 (a suspicion)
    local rank=(0 2 3 1)
    [ "${rank[$1]}" -le "${rank[$status]}" ] || status=$1
}
# an older report stays until there is a new one
restore() {
    rm -rf "$REPORT"
    [ ! -e "$REPORT.old" ] || mv "$REPORT.old" "$REPORT"
}
mkdir -p "$ANSWERS"
if command -v flock > /dev/null; then  # held by what is started here, too: it dies with the last of them
    exec 9> "$ANSWERS/.$(basename "$REPORT").lock"
    flock -n 9 || { echo "eval.sh: $REPORT: another eval.sh is writing it" >&2; exit 2; }
fi
rm -rf "$REPORT.old"
[ ! -e "$REPORT" ] || mv "$REPORT" "$REPORT.old"
mkdir "$REPORT"
trap restore EXIT
FILES=() RUNGS=() SPACED=()
for row in $(printf '%s\n' "${ROWS[@]}" | awk '!seen[$0]++'); do
    code=0
    logged "$row" || code=$?
    printf '%s\t%s\t%s\t%s\n' "$row" $code "$(answers_of "$row")" "$REPORT/$row.log" >> "$REPORT/rows.tsv"
    if [ $code -gt 1 ] && [ "$row" = "$BASELINE" ] || [ $code -eq 130 ]; then
        exit $((code == 130 ? 130 : 2))
    elif [ $code -gt 1 ]; then
        echo "eval.sh: $row is left out" >&2
        # of all methods some have no weights for a target
        [ $code -eq 2 ] && [ -n "$OPTIONAL" ] || note_status 2
        continue
    fi
    note_status $code  # 1: questions failed, the others count
    if [ "$row" = vanilla ]; then  # all rows are computed as the baseline was
        PRODUCTS=$("$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))["environment"].get("turned_rows") or "")' \
            "$(written_by vanilla | head -1 | sed 's/jsonl$/meta.json/')") || exit 2
    fi
    case $row in
        space) mapfile -t SPACED < <(written_by vanilla-space; written_by space) ;;
        vanilla-*) mapfile -t -O ${#RUNGS[@]} RUNGS < <(written_by "$row") ;;
        *) mapfile -t -O ${#FILES[@]} FILES < <(written_by "$row") ;;
    esac
done

[ $((${#FILES[@]} + ${#RUNGS[@]} + ${#SPACED[@]})) -gt 0 ] || exit 2
rm -rf "$REPORT.old"
trap - EXIT

JUDGING=()
[ -z "${JUDGE:-}" ] || JUDGING=(--device "${DEVICE:-auto}" ${NUM_THREADS:+--num-threads "$NUM_THREADS"})
REPORTS=()
judged() {  # judged SUFFIX TOOL FLAG...: its text goes into details.txt, its report beside it; returns its exit status
    local report=$REPORT/$2$1.json code=0
    "$PYTHON" "evaluation/$2.py" --json "$report" "${@:3}" >> "$REPORT/details.txt" || code=$?
    [ ! -e "$report" ] || REPORTS+=("$report")
    [ $code -le 3 ] || code=2
    return $code
}
same() {  # same SUFFIX TARGET BASE FILE...: verdicts; 1 or 3 where answers differ that should not, 2 where they are none
    local suffix=$1 target=$2 code=0
    shift 2
    judged "$suffix" equal "$@" ${JUDGE:+--model-path "$target" "${JUDGING[@]}"} || code=$?
    if [ -z "${JUDGE:-}" ] && [ $code -eq 1 ] && { [ "$DTYPE" != float32 ] || [ "$TEMPERATURE" != 0 ]; }; then
        code=0  # half precision flips near-ties (JUDGE=1 tells), sampling draws other tokens
    fi
    note_status $code
    return $code
}
compare() {  # compare SUFFIX TARGET BASE FILE...: speedup tables, what a step costs, verdicts
    local suffix=$1 target=$2 base=$3
    shift 3
    [ $# -gt 0 ] || set -- "$base"
    if [ "${PAIRED:-}" = 1 ] && [ "$*" != "$base" ]; then
        judged "$suffix" speed --profile --file-path "$@" --paired || note_status $?
    else
        judged "$suffix" speed --profile --file-path "$@" --base-path "$base" \
            ${RUNGS[@]:+--ladder "${RUNGS[@]}"} || note_status $?
    fi
    same "$suffix" "$target" "$base" "$@" || true
    [ "$TEMPERATURE" = 0 ] || judged "$suffix" audit_sampling "$base" "$@" || note_status $?
}
served() {  # served SUFFIX FILE...: a table of serving figures, its report beside the others
    "$PYTHON" evaluation/serving.py "${@:2}" ${SLO:+--slo "$SLO"} --json "$REPORT/serving$1.json" \
        --details "$REPORT/details.txt" || note_status 2
}
compare_loads() {  # compare_loads SUFFIX TARGET BASELINE FILE...: serving figures, verdicts of each rate's files
    local suffix=$1 target=$2 stem base file others=() alike number=0
    stem=$ANSWERS/$(id_of "$3")
    BASES=()
    shift 3
    for file in "$@"; do
        if [[ $file == "$stem"-* ]]; then BASES+=("$file"); else others+=("$file"); fi
    done
    for base in ${BASES[@]:+"${BASES[@]}"}; do
        alike=()
        for file in ${others[@]:+"${others[@]}"}; do
            [[ $file != *"${base#"$stem"}" ]] || alike+=("$file")
        done
        [ ${#alike[@]} -eq 0 ] || same "$suffix$((number += 1))" "$target" "$base" "${alike[@]}" ||
            [ $? -eq 2 ] || DIFFER=1
    done
    served "$suffix" "$@" ${BASES[@]:+--base-path "${BASES[@]}"}
    METHODS+=(${others[@]:+"${others[@]}"})
}
suite_files() {  # the published suite's four files, of one method at one rate and the BASES that it was compared with
    local out=${OUTPUT_FILE:-benchmark_results.json} speculative=${METHODS[0]:-} base=${BASES[0]:-}
    if [ ${#METHODS[@]} -gt 1 ] || [ ${#BASES[@]} -gt 1 ]; then
        [ -z "${OUTPUT_FILE:-}" ] || echo "not written: $OUTPUT_FILE holds one method at one rate"
        return
    fi
    [ -n "$speculative$base" ] || return 0
    [[ $out == */* ]] || out=$REPORT/$out
    "$PYTHON" evaluation/serving.py "${speculative:-$base}" ${speculative:+${base:+--base-path "$base"}} \
        --as benchmark-results "$out" > /dev/null || return
    echo "written: $out, and its parts beside it"
}
if [ -n "${LOAD:-}" ]; then
    METHODS=() BASES=() DIFFER=
    [ ${#FILES[@]} -eq 0 ] || compare_loads "" "$TARGET" "$BASELINE" "${FILES[@]}"
    [ ${#RUNGS[@]} -eq 0 ] ||
        served _runtimes "${RUNGS[@]}" ${BASES[@]:+--base-path "${BASES[@]}" --allow runtime}
    [ ${#SPACED[@]} -eq 0 ] || compare_loads _space "$SPACE" vanilla-space "${SPACED[@]}"
    echo "details: $REPORT/ (details.txt, serving*.json, *.log)"
    [ -z "$DIFFER" ] || echo "answers differ from the baseline's: $REPORT/details.txt"
    [ "$MODE" != serve ] || suite_files || note_status 2
    FILES+=(${RUNGS[@]:+"${RUNGS[@]}"} ${SPACED[@]:+"${SPACED[@]}"})
else
    ALL_RUNGS=(${RUNGS[@]:+"${RUNGS[@]}"})
    compare "" "$TARGET" "${FILES[@]}"
    if [ ${#SPACED[@]} -gt 0 ]; then
        RUNGS=()
        compare _space "$SPACE" "${SPACED[@]}"
    fi
    "$PYTHON" evaluation/summarise.py ${REPORTS[@]:+"${REPORTS[@]}"} --rows "$REPORT/rows.tsv" \
        --details "details: $REPORT/ (details.txt, *.json, *.log)" || note_status 2
    FILES+=(${SPACED[@]:+"${SPACED[@]}"} ${ALL_RUNGS[@]:+"${ALL_RUNGS[@]}"})
fi
[ -z "$MORE" ] || echo "$MORE"
"$PYTHON" evaluation/report.py "${FILES[@]}" ${REPORTS[@]:+--reports "${REPORTS[@]}"} ${SLO:+--slo "$SLO"} \
    --published data/leaderboard/published.jsonl $([ ! -d "$TARGET" ] || echo --tokenizer-path "$TARGET") \
    $([ ! -f "data/$BENCH/question.jsonl" ] || echo --question-file "data/$BENCH/question.jsonl") \
    --output "$REPORT/report.html" || note_status 2
exit $status
