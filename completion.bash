# bash completion for gemma4.
_gemma4() {
    local word=$2 before=$3
    local options="--model --prompt --system --max-tokens --context --temp --temperature --top-k --top-p --min-p --repeat-penalty --seed --kv --exact --activations --fp4-activations
        --threads --chunk --device --gpu-memory --cpu-experts --expert-slots --think --think-tokens --tools --run-tools --yes --json-schema --jsonl --stream --raw --ids --print-ids
        --ignore-eos --stats --quiet --cache --load --save --context-overflow --no-markdown --raw-output --help --version --plain --decode --top --logits --request --json
        --draft --draft-tokens --draft-log --lora --text --summary --reference --scenario --plot --file --image --image-tokens --video --video-frames --open-thought"
    case $before in
    --image-tokens) COMPREPLY=($(compgen -W "70 140 280 560 1120" -- "$word")) ;;
    --activations) COMPREPLY=($(compgen -W "8 16 32" -- "$word")) ;;
    --kv) COMPREPLY=($(compgen -W "auto f32 bf16 fp8" -- "$word")) ;;
    --device) COMPREPLY=($(compgen -W "auto cpu cuda plain" -- "$word")) ;;
    --context-overflow) COMPREPLY=($(compgen -W "stop slide" -- "$word")) ;;
    --scenario) COMPREPLY=($(compgen -W "all chat rag long context multiturn reasoning" -- "$word")) ;;
    -m|--model|--draft) mapfile -t COMPREPLY < <(compgen -d -- "$word"; compgen -f -X '!*.safetensors' -- "$word") ;;
    --run-tools|--lora) mapfile -t COMPREPLY < <(compgen -d -- "$word") ;;
    -f|--file|-i|--image|--video|--cache|--load|--save|--draft-log|--text|--reference|--plot|--tools|--json-schema|--ids|--logits|--request) mapfile -t COMPREPLY < <(compgen -f -- "$word") ;;
    *)
        if [[ $word == -* ]]; then COMPREPLY=($(compgen -W "$options" -- "$word"))
        elif ((COMP_CWORD == 1)); then COMPREPLY=($(compgen -W "tokenize render parse check score bench info" -- "$word"))
        fi ;;
    esac
}
complete -o filenames -F _gemma4 gemma4
