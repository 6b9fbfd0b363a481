#!/usr/bin/env bash
# Runs the gate with the inputs of action.yml, which come as environment variables: nothing of them is read as code.
set -uo pipefail
mkdir -p "$REPORT"
set -f # patterns are the gate's, not the shell's
read -ra patterns <<<"$QUANTITIES"
words=(--quantities "${patterns[@]}" --seconds "$GATE_SECONDS")
[ -n "$BASE_REF" ] && words+=(--base-ref "$BASE_REF")
[ -n "$PIN" ] && words+=(--pin "$PIN")
[ -n "$RECIPE" ] && words+=(--recipe "$RECIPE")
words+=(--json "$REPORT/gate.json" --markdown "$REPORT/gate.md" --html "$REPORT/gate.html")

$PLLM gate "${words[@]}"
code=$?
[ -f "$REPORT/gate.md" ] && cat "$REPORT/gate.md" >>"$GITHUB_STEP_SUMMARY"
case $code in
    0) verdict=pass ;;
    5) verdict=regression ;;
    3) verdict=void ;;
    *) verdict= ;;
esac
echo "verdict=$verdict" >>"$GITHUB_OUTPUT"
if [ "$code" = 3 ] && [ "$ON_VOID" = warn ]; then
    echo '::warning title=pllm gate: void::The runner was too restless: nothing can be said of speed. This is no pass.'
    exit 0
fi
exit "$code"
