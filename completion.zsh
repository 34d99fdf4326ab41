#compdef gemma4
# zsh completion for gemma4.
_arguments -s \
    '(-m --model)'{-m,--model}'[checkpoint or hub name]:directory:_files -g "*.safetensors"' \
    '(-p --prompt)'{-p,--prompt}'[the question]:text' \
    '(-s --system)'{-s,--system}'[system prompt]:text' \
    '(-n --max-tokens)'{-n,--max-tokens}'[answer at most]:tokens' \
    '(-c --context)'{-c,--context}'[room for]:tokens' \
    '(-t --threads)'{-t,--threads}'[threads]:number' \
    '*'{-f,--file}'[a text file behind the question]:file:_files' \
    '*'{-i,--image}'[an image before the question]:file:_files' '*--video[a video before the question]:file:_files' \
    '--image-tokens[how closely to look]:tokens:(70 140 280 560 1120)' '--video-frames[at most]:number' \
    '--temp[temperature]:number' '--top-k[keep the k most probable]:number' '--top-p[keep this probability]:number' \
    '--min-p[keep what is this probable]:number' '--repeat-penalty[penalty]:number' '--seed[seed]:number' \
    '--kv[cache]:type:(auto f32 bf16 fp8)' '--exact[float32 throughout]' '--activations[bits, of products on the CPU]:bits:(8 16 32)' \
    '--fp4-activations[prompts rounded to FP4]' '--chunk[prefill step]:tokens' \
    '--device[where to compute]:device:(auto cpu cuda plain)' \
    '--gpu-memory[GPU memory to use at most]:GB' '--cpu-experts[experts of so many layers on the CPU]:layers' \
    '--expert-slots[so many of each such layer on the GPU]:experts' \
    '--think[a thought first]' '--think-tokens[a thought of at most]:tokens' \
    '--tools[functions the model may call]:file or JSON:_files' '--run-tools[run its calls]:directory:_files -/' '--yes[unasked]' \
    '--json-schema[an answer that satisfies it]:file or JSON:_files' '--jsonl[JSON requests]' '--stream[answers in chunks]' \
    '--raw[no chat template]' '--ids[token ids]:file:_files' '--print-ids[the answer as token ids]' '--ignore-eos[never end a turn]' \
    '--draft[a drafter]:directory:_files -/' '--draft-tokens[guesses a round]:number' '--draft-log[a line a round]:file:_files' \
    '*--lora[a LoRA adapter]:directory:_files -/' '--text[a text to score]:file:_files' '--summary[one line]' '--reference[logits of another run]:file:_files' \
    '--scenario[what to measure]:name:(all chat rag long context multiturn reasoning)' '--plot[rates as SVG]:file:_files' \
    '(-q --quiet)'{-q,--quiet}'[errors alone]' '--cache[a document, read once]:file:_files' \
    '--load[a conversation]:file:_files' '--save[the conversation]:file:_files' \
    '--context-overflow[where it is full]:what:(stop slide)' '--no-markdown[answers as they are]' '--raw-output[control characters as they are]' \
    '--open-thought[the prompt ended in a thought]' '--stats[rates]' '--plain[control tokens are text]' '--decode[ids to text]' '--top[candidates]:number' \
    '--logits[write logits]:file:_files' '--request[a request]:file:_files' '--json[as JSON]' \
    '(-h --help)'{-h,--help}'[help]' '--version[version]' \
    '1:command or question:(tokenize render parse check score bench info)' '*:question'
