"""One shot, continuing, tokenize, render, score, options and their errors."""
import json
import math
import os
import re
import shutil
import signal
import subprocess

import pexpect
import pytest

from conftest import (ANSWER, ENDLESS, FIXTURES, GEMMA4, ON_ARM, PATIENCE, ROOT, THOUGHT, answer, complaint, environment, ids_of, read_floats,
                      read_json, read_line, run, write_ids, write_json)
from test_sessions import small_files

GREEDY = ('--temp', 0)
# 40 draws from nearly even odds: two prompts that differ give different ids, the same prompt the same ones.
FUSSY = ('--seed', 1, '--temp', 5, '--top-k', 0, '--top-p', 1, '--print-ids', '--ignore-eos', '-n', 40)


def cases(file):
    return [json.loads(line) for line in (FIXTURES / file).read_text().splitlines()]


def tokenize(model, text, *options):
    return ids_of('tokenize', '-m', model, *options, stdin=text)


def decode(model, ids):
    return run('tokenize', '--decode', '-m', model, stdin=' '.join(map(str, ids))).stdout


def stats(*args, **kwargs):
    """The numbers that --stats counts: tokens of the prompt and of the answer."""
    done = run(*args, '--stats', **kwargs)
    assert done.returncode == 0
    line = re.fullmatch(rb'prompt: (\d+) tokens.*; answer: (\d+) tokens.*\n', done.stderr)
    assert line, done.stderr
    return int(line[1]), int(line[2])


# ---------------------------------------------------------------------------------------------- one shot

@pytest.mark.parametrize('call, stdin', [
    (['hello'], ''), (['-p', 'hello'], ''), (['--prompt=hello'], ''), ([], 'hello'), (['hello'], 'more\n'),
    (['one', 'two'], ''), (['--', '-hello'], ''), (['-p', 'tokenize'], ''),
], ids=str)
def test_answer_alone_on_stdout(puppet, call, stdin):
    assert answer('-m', puppet, *call, stdin=stdin) == ANSWER + '\n'


def test_thought_goes_to_stderr(puppet):
    done = run('-m', puppet, 'hello', '--think')
    assert (done.returncode, done.stdout.decode(), done.stderr.decode()) == (0, ANSWER + '\n', THOUGHT + '\n')


def test_answer_cut_in_the_thought(puppet):
    done = run('-m', puppet, 'hello', '--think', '-n', 10)
    assert (done.returncode, done.stdout) == (0, b'\n')
    thought, *warnings = done.stderr.decode().splitlines()
    assert THOUGHT.startswith(thought) and thought
    assert warnings == ['gemma4: warning: the answer was cut: -n 10', 'gemma4: warning: the thought did not end: there is no answer']


@pytest.mark.parametrize('question', ['What is this program?', 'Hello!', 'What is 3 + 4?'])
def test_demo_answers(demo, question):
    first = answer('-m', demo, question, *GREEDY)
    assert first.strip() and '<|' not in first and '|>' not in first
    assert answer('-m', demo, question, *GREEDY) == first


def test_demo_thinks_on_stderr_only(demo):
    """What it thinks is its own affair, but JSON and one shot must tell thought and answer apart in the same way."""
    request = {'messages': [{'role': 'user', 'content': 'What is 3 + 4?'}], 'chat_template_kwargs': {'enable_thinking': True}}
    message = json.loads(answer('-m', demo, '--jsonl', *GREEDY, stdin=json.dumps(request)))['choices'][0]['message']
    done = run('-m', demo, '--think', *GREEDY, 'What is 3 + 4?')
    assert done.returncode == 0
    assert done.stdout.decode().rstrip('\n') == message['content'].rstrip('\n')
    assert done.stderr.decode().rstrip('\n') == message.get('reasoning_content', '').rstrip('\n')


def test_a_dash_is_stdin(odd):
    """Where it is the only word; behind -- it is text."""
    call = ('-m', odd, '-n', 5, '--temp', 0)
    assert answer(*call, '-', stdin='hello') == answer(*call, stdin='hello') != answer(*call, '--', '-', stdin='hello')
    assert answer('tokenize', '-m', odd, '-', stdin='hello') == answer('tokenize', '-m', odd, stdin='hello')


def test_argument_and_piped_text_are_joined_by_a_blank_line(odd):
    options = ('-m', odd, *FUSSY)
    joined = ids_of(*options, 'Summarise: this', stdin='first\nsecond\n')
    assert ids_of(*options, '-p', 'Summarise: this\n\nfirst\nsecond') == joined
    assert ids_of(*options, 'Summarise:', 'this', stdin='first\nsecond') == joined
    assert ids_of(*options, stdin='Summarise: this\n\nfirst\nsecond') == joined
    assert ids_of(*options, '-p', 'Summarise: this\nfirst\nsecond') != joined
    assert ids_of(*options, '-p', 'Summarise: this') != joined


def test_question_and_system_prompt_become_the_rendered_prompt(odd, tmp_path):
    request = {'messages': [{'role': 'system', 'content': 'Be brief.'}, {'role': 'user', 'content': 'a <turn|> b'}]}
    ids = ids_of('render', '--ids', '-m', odd, stdin=json.dumps(request))
    want = ids_of('-m', odd, '--ids', write_ids(tmp_path / 'ids', ids), *FUSSY)
    for flag in ('-s', '--system'):
        assert ids_of('-m', odd, flag, 'Be brief.', 'a <turn|> b', *FUSSY) == want
    assert ids_of('-m', odd, 'a <turn|> b', *FUSSY) != want


@pytest.mark.parametrize('options', [[], ['--raw'], ['--think']], ids=str)
def test_ends_in_one_newline(odd, options):
    """Also when the answer itself ends in a newline: then none is added."""
    vocabulary = read_json(odd / 'tokenizer.json')['model']['vocab']
    newline = (vocabulary['\n'], vocabulary['<0x0A>'])
    call = ('-m', odd, '-p', 'go on', '--ignore-eos', *options)
    for seed in range(40):
        ids = ids_of(*call, '--seed', seed, '--print-ids', '-n', 150)
        at = next((i for i, id in enumerate(ids) if i and id in newline and not decode(odd, [ids[i - 1]]).endswith(b'\n')), None)
        if at:
            break
    assert at, 'no seed whose answer has a line end'
    for n in (at, at + 1):
        text = run(*call, '--seed', seed, '-n', n).stdout
        assert text.endswith(b'\n') and not text.endswith(b'\n\n')


def test_stats_on_stderr(puppet, odd):
    done = run('-m', puppet, 'hello', '--stats')
    assert done.stdout.decode() == ANSWER + '\n'
    line, = done.stderr.decode().splitlines()
    for word in ('prompt:', 'tokens/s', 'first token', 'answer: 10 tokens', 'peak memory'):
        assert word in line
    ids = ids_of('render', '--ids', '-m', odd, stdin=json.dumps({'messages': [{'role': 'user', 'content': 'hello'}]}))
    assert stats('-m', odd, 'hello', '-n', 7, '--ignore-eos') == (len(ids), 7)
    assert stats('-m', odd, '--raw', '-p', 'hello', '-n', 1) == (len(tokenize(odd, '<bos>hello')), 1)


def test_print_ids(puppet, odd):
    ids = ids_of('-m', puppet, 'hello', '--print-ids')
    end, = tokenize(puppet, '<turn|>')
    assert ids[-1] == end and decode(puppet, ids[:-1]).decode() == ANSWER
    assert len(ids_of('-m', odd, 'hello', '--print-ids', '--ignore-eos', '-n', 3)) == 3
    assert ids_of('-m', odd, 'hello', '--print-ids', '-n', 0) == []


def test_no_token_asked_for(puppet):
    assert answer('-m', puppet, 'hello', '-n', 0) == '\n'


def test_max_tokens_cuts(puppet):
    assert answer('-m', puppet, 'hello', '-n', 4) == 'The command is one\n'
    # The é comes in two tokens: a character that is not whole comes out as U+FFFD, never as half of one.
    assert answer('-m', puppet, 'hello', '-n', 7) == 'The command is one: \ufffd\n'
    assert answer('-m', puppet, 'hello', '--max-tokens=8') == 'The command is one: é\n'
    assert answer('-m', puppet, 'hello', '-n', -1) == ANSWER + '\n'


def test_a_cut_is_said(puppet):
    """Also of a schema's value, which looks complete; not where the limit is the only end there is."""
    for schema in (), ('--json-schema', '{"type": "string"}'):
        assert run('-m', puppet, 'hello', '-n', 5, *schema).stderr == b'gemma4: warning: the answer was cut: -n 5\n'
    for quiet in ('-n', 11), ('-n', 4, '-q'), ('-n', 0), ('-n', 4, '--ignore-eos'), ('-n', 4, '--print-ids'):
        assert run('-m', puppet, 'hello', *quiet).stderr == b''
    assert run('-m', puppet, '--raw', '-p', 'The', '-n', 4).stderr == b''


def test_answer_ends_with_the_context(odd):
    """The last token needs no room of its own."""
    n = len(ids_of('render', '--ids', '-m', odd, stdin=json.dumps({'messages': [{'role': 'user', 'content': 'hello'}]})))
    for more in (0, 1, 30):
        done = run('-m', odd, 'hello', '--print-ids', '--ignore-eos', '-c', n + more)
        assert done.returncode == 0 and len(done.stdout.split()) == more + 1
        assert done.stderr.decode() == 'gemma4: warning: the answer was cut: the context of %d tokens (-c) is full\n' % (n + more)
        assert len(ids_of('-m', odd, 'hello', '--print-ids', '--ignore-eos', '-c', n + more, '-n', more + 1)) == more + 1
    text = complaint(1, '-m', odd, 'hello', '-c', n - 1)
    assert str(n) in text and str(n - 1) in text and '-c' in text


def test_long_prompt_does_not_fit(odd):
    text = complaint(1, '-m', odd, stdin='hello ' * 5000)
    assert '4096' in text
    for call in (['hello'], ['info']):
        text = complaint(1, *call, '-m', odd, '-c', 4097)
        assert '4097' in text and '4096' in text


def test_prompt_of_many_chunks_and_windows(odd, tmp_path):
    """As the reference's tests, but long: whatever the chunk, the same tokens."""
    ids = [2] + [5 + (i * i + i // 7) % 480 for i in range(1500)]
    call = ('-m', odd, '--ids', write_ids(tmp_path / 'ids', ids), *GREEDY, '--exact', '--print-ids', '-n', 16, '--ignore-eos')
    want = ids_of(*call)
    for options in (['--chunk', 64], ['--chunk', 8192, '-c', 1600], ['--chunk', 1499, '-c', 1517]):
        assert ids_of(*call, *options) == want


def test_end_token_of_raw_text(puppet):
    call = ('-m', puppet, '--raw', '-p', 'The')
    rest = 'The command is one: é…'[3:]
    assert answer(*call) == rest + '\n'
    # Nothing follows <turn|> in the puppet's script: something must come, and it must be shown by its name.
    assert answer(*call, '--ignore-eos', '-n', 10).startswith(rest + '<turn|>')


# ---------------------------------------------------------------------------------------------- continuing text and ids

def test_raw_text_is_continued(odd, tmp_path):
    def continue_ids(ids):
        return ids_of('-m', odd, '--ids', write_ids(tmp_path / 'ids', ids), *FUSSY)

    def continue_text(*args, **kwargs):
        return ids_of('-m', odd, '--raw', *args, *FUSSY, **kwargs)
    text = 'The <|turn>user  of'
    ids = tokenize(odd, text)
    bos, = tokenize(odd, '<bos>')
    want = continue_ids([bos] + ids)
    assert continue_text('-p', text) == want
    assert continue_text(text) == want
    assert continue_text(stdin=text) == want
    assert continue_text('-p', '<bos>' + text) == want
    assert continue_text('-p', ' ' + '<bos>' + text) == continue_ids([bos, *tokenize(odd, ' '), bos] + ids)
    assert continue_text(stdin=text + '\n') == continue_ids([bos] + tokenize(odd, text + '\n')) != want
    assert continue_text('-p', 'The', stdin='end') == continue_ids([bos] + tokenize(odd, 'The\n\nend'))
    assert continue_ids(ids) != want                    # --ids: verbatim, no <bos>
    assert continue_text('-p', '') == continue_ids([bos])


def test_raw_text_takes_any_byte(odd, tmp_path):
    text = b'a\x00b\xff\xfe' + bytes(range(128, 256))
    ids = tokenize(odd, b'<bos>' + text)
    want = ids_of('-m', odd, '--ids', write_ids(tmp_path / 'ids', ids), *FUSSY)
    assert ids_of('-m', odd, '--raw', *FUSSY, stdin=text) == want


def test_raw_answer_is_its_ids_as_text(odd):
    call = ('-m', odd, '--raw', '-p', 'The', '--seed', 5, '--ignore-eos', '-n', 300)
    got = answer(*call)
    want = decode(odd, ids_of(*call, '--print-ids')).decode(errors='replace')
    squeeze = lambda text: re.sub('\ufffd+', '\ufffd', text)  # how many stand for broken bytes is a matter of taste
    assert squeeze(got) == squeeze(want) + '\n'


@pytest.mark.parametrize('form', ['{}', ' {}\n', '\t{}\r\n\n'])
def test_ids_file(puppet, tmp_path, form):
    file = tmp_path / 'ids'
    file.write_text(form.format('\n'.join(map(str, tokenize(puppet, 'The')))))
    assert answer('-m', puppet, '--ids', file) == ANSWER[3:] + '\n'
    assert answer('-m', puppet, '--ids=%s' % file, stdin='not read') == ANSWER[3:] + '\n'


@pytest.mark.parametrize('content, word', [
    ('', 'no token ids'), (' \n', 'no token ids'), ('1 2 x', 'byte 4'), ('1 -2', 'byte 2'), ('519', '519'),
    ('1 99999999999999999999999', '9999'), ('1' * 30 + 'x', '1' * 30 + ' '),
    ('1' * 61, 'id ' + '1' * 30 + ' is'), ('1.5', 'byte'), ('1,2', 'byte'), ('0x10', 'byte'), ('[1, 2]', 'byte 0'),
])
def test_bad_ids_file(odd, tmp_path, content, word):
    file = tmp_path / 'ids'
    file.write_text(content)
    text = complaint(1, '-m', odd, '--ids', file)
    assert str(file) in text and word in text
    assert complaint(1, 'score', '-m', odd, '--ids', file) == text


def test_ids_up_to_the_vocabulary_of_the_model(odd, tmp_path):
    """The model's vocabulary (519) is larger than the tokenizer's (512); the last id is fine."""
    assert len(ids_of('-m', odd, '--ids', write_ids(tmp_path / 'ids', [2, 518]), '-n', 2, '--ignore-eos', '--print-ids')) == 2


# ---------------------------------------------------------------------------------------------- sampling

def sample(model, *options):
    return ids_of('-m', model, 'go on', '--print-ids', '--ignore-eos', '-n', 40, *options)


def test_seed(odd):
    first = sample(odd, '--seed', 7)
    assert sample(odd, '--seed', 7) == first
    assert sample(odd, '--seed', 8) != first
    assert sample(odd, '--seed', 7, '--temp', 1, '--top-k', 64, '--top-p', 0.95, '--min-p', 0, '--repeat-penalty', 1) == first
    assert sample(odd, '--seed', 7, '--temp', 1.5) != first
    assert sample(odd) != sample(odd)


@pytest.mark.parametrize('options', [
    ['--top-k', 1], ['--top-p', 0], ['--min-p', 1], ['--temp', 1e-6], ['--temp', 0, '--seed', 3, '--top-k', 0],
    ['--top-p', 1e-9],
], ids=str)
def test_narrow_sampling_is_greedy(odd, options):
    assert sample(odd, *options) == sample(odd, '--temp', 0)


@pytest.mark.parametrize('changes', [{'do_sample': False}, {'top_k': 1}, {'temperature': 0}, {'top_p': 0.0}, {'min_p': 1}], ids=str)
def test_sampling_defaults_come_from_the_checkpoint(odd, copy, changes):
    model = copy(odd)
    file = model / 'generation_config.json'
    write_json(file, dict(read_json(file), **changes))
    assert sample(model) == sample(odd, '--temp', 0)


def test_generation_config_that_has_no_effect(odd, copy):
    model = copy(odd)
    file = model / 'generation_config.json'
    none = {'num_beams': 1, 'typical_p': 1.0, 'no_repeat_ngram_size': 0, 'bad_words_ids': None, 'forced_bos_token_id': None, 'sequence_bias': []}
    write_json(file, dict(read_json(file), **none))
    assert 'no effect' not in run('-m', model, '-n', 1, 'x').stderr.decode()
    write_json(file, dict(read_json(file), num_beams=4, no_repeat_ngram_size=1, bad_words_ids=[[5]], max_new_tokens=9, max_length=20))
    line = 'gemma4: warning: fields of generation_config.json have no effect: '
    said = run('-m', model, '-n', 1, 'x').stderr.decode().splitlines()[0]
    assert said.startswith(line) and sorted(said[len(line):].split(', ')) == ['bad_words_ids', 'max_length', 'max_new_tokens', 'no_repeat_ngram_size', 'num_beams']


def test_repeat_penalty_of_the_checkpoint(odd, copy):
    model = copy(odd)
    file = model / 'generation_config.json'
    write_json(file, dict(read_json(file), repetition_penalty=100))
    assert sample(model, '--temp', 0) == sample(odd, '--temp', 0, '--repeat-penalty', 100) != sample(odd, '--temp', 0)
    assert sample(model, '--temp', 0, '--repeat-penalty', 1) == sample(odd, '--temp', 0)


def test_repeat_penalty(odd):
    prompt = ids_of('render', '--ids', '-m', odd, stdin=json.dumps({'messages': [{'role': 'user', 'content': 'go on'}]}))
    ids = sample(odd, '--temp', 0, '--repeat-penalty', 100)
    assert len(set(ids)) == len(ids) and not set(ids) & set(prompt)
    assert len(set(sample(odd, '--temp', 0))) < 40


# ---------------------------------------------------------------------------------------------- streams that end early

def closed_after(p, n):
    """Reads n bytes of stdout, closes it, and returns the exit status and stderr."""
    while n:
        n -= len(p.stdout.read(n))
    p.stdout.close()
    return p.wait(PATIENCE), p.stderr.read()


@pytest.mark.parametrize('n', [0, 1, 100])
def test_closed_stdout_ends_quietly(start, chatterbox, n):
    """As a program that SIGPIPE ends."""
    p = start('-m', chatterbox, 'hello', *ENDLESS, stdin=subprocess.DEVNULL)
    assert closed_after(p, n) == (141, b'')


def test_closed_stdout_of_the_other_calls(start, chatterbox, odd):
    p = start('-m', chatterbox, '--jsonl', *ENDLESS)
    p.stdin.write(json.dumps({'stream': True, 'messages': [{'role': 'user', 'content': 'hello'}]}).encode() + b'\n')
    assert closed_after(p, 10) == (141, b'')
    p = start('tokenize', '-m', odd)
    p.stdin.write(b'hello ' * 300000)
    p.stdin.close()
    assert closed_after(p, 1) == (141, b'')


def test_head_of_a_long_answer(chatterbox):
    line = '"$0" -m "$1" hello -c 1000000 </dev/null | head -c 11; echo " ${PIPESTATUS[@]}"'
    done = subprocess.run(['bash', '-c', line, GEMMA4, chatterbox], capture_output=True, env=environment(), timeout=PATIENCE)
    assert (done.stdout, done.stderr) == (b'The command 141 0\n', b'')


@pytest.mark.parametrize('call, stdin', [
    (['hello'], ''), (['--jsonl'], '{}\n'), (['tokenize'], 'x'), (['render'], '{"messages": [{"role": "user", "content": "x"}]}'),
    (['info'], ''), (['score', '--raw', '-p', 'x'], ''), (['--help'], ''), (['--version'], ''),
], ids=lambda x: ' '.join(x) if isinstance(x, list) else '')
def test_full_disk(puppet, call, stdin):
    with open('/dev/full', 'wb') as full:
        done = run(*call, '-m', puppet, stdin=stdin, stdout=full)
    assert (done.returncode, done.stderr) == (1, b'gemma4: stdout: No space left on device\n')


def test_stdout_that_does_not_block(start, odd):
    """A program that shares it may have set O_NONBLOCK: what finds no room at once is written later."""
    text = b'x y ' * 100000
    out, into = os.pipe()
    os.set_blocking(into, False)
    p = start('tokenize', '-m', odd, stdout=into)
    os.close(into)
    p.stdin.write(text)
    p.stdin.close()
    with open(out, 'rb') as pipe:
        assert pipe.read() == run('tokenize', '-m', odd, stdin=text).stdout
    assert (p.wait(PATIENCE), p.stderr.read()) == (0, b'')


def test_interrupted_answer(start, chatterbox):
    """What was written until then is whole."""
    p = start('-m', chatterbox, 'hello', *ENDLESS, stdin=subprocess.DEVNULL)
    text = p.stdout.read(50)
    p.send_signal(signal.SIGINT)
    text = (text + p.stdout.read()).decode().rstrip('\n')
    assert (p.wait(PATIENCE), p.stderr.read()) == (130, b'')
    assert text and text == ('The command is one,' * len(text))[:len(text)]


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_interrupted_answer_is_saved(start, chatterbox, tmp_path, number):
    """As far as it has come; a file that is there stays when nothing has."""
    saved = tmp_path / 'talk.json'
    p = start('-m', chatterbox, 'hello', '--save', saved, *ENDLESS, stdin=subprocess.DEVNULL)
    text = p.stdout.read(50)
    p.send_signal(number)
    text = (text + p.stdout.read()).decode().rstrip('\n')
    assert (p.wait(PATIENCE), p.stderr.read()) == (128 + number, b'')
    assert json.loads(saved.read_text())['messages'][-1] == {'role': 'assistant', 'content': text}
    before = saved.read_bytes()
    p = start('-m', chatterbox, '--save', saved, *ENDLESS)
    p.stdin.write(b'x y ' * 200000)
    p.stdin.close()
    p.send_signal(number)
    assert p.wait(PATIENCE) == 128 + number and saved.read_bytes() == before


def test_interrupted_while_reading_the_prompt(start, chatterbox):
    """A prompt that would take minutes."""
    p = start('-m', chatterbox, *ENDLESS)
    p.stdin.write(b'x y ' * 200000)         # more than the pipe holds: the program is reading, so it is ready for signals
    p.stdin.close()
    p.send_signal(signal.SIGINT)
    out, err = p.stdout.read(), p.stderr.read()
    assert p.wait(PATIENCE) == 130
    assert err == b'' and out.strip() == b''


@pytest.mark.parametrize('call', [['tokenize'], [], ['render'], ['--jsonl']], ids=' '.join)
def test_interrupted_while_waiting_for_stdin(start, puppet, call):
    p = start(*call, '-m', puppet)
    p.stdin.write(b' ' * 200000)
    p.send_signal(signal.SIGINT)
    assert (p.wait(PATIENCE), p.stderr.read()) == (130, b'')


@pytest.mark.parametrize('silence', [{}, {'env': environment(GEMMA4_DEVICE='auto')}], ids=['as it is', 'auto'])
def test_nothing_on_stderr_when_all_is_well(puppet, silence):
    done = run('-m', puppet, 'hello', stdin='', **silence)
    assert (done.returncode, done.stdout, done.stderr) == (0, ANSWER.encode() + b'\n', b'')


def test_quiet(puppet, tmp_path):
    """No thought, no warning; errors and --stats stay."""
    thought = run('-m', puppet, '--think', 'hello')
    assert THOUGHT.encode() in thought.stderr
    done = run('-m', puppet, '--think', '-q', 'hello')
    assert (done.returncode, done.stdout, done.stderr) == (0, thought.stdout, b'')
    assert re.fullmatch(rb'prompt: .*\n', run('-m', puppet, '--quiet', '--stats', 'hello').stderr)
    tools = write_json(tmp_path / 'tools.json', [{'type': 'function', 'surprise': 1, 'function': {'name': 'f'}}])
    assert b'surprise' in run('-m', puppet, '--tools', tools, 'hello').stderr
    assert run('-m', puppet, '--tools', tools, '-q', 'hello').stderr == b''
    assert 'nothing' in complaint(1, '-q', '-m', tmp_path / 'nothing', 'hello')


def test_a_stdin_that_stays_open(start, puppet):
    """Beside an argument a silent stdin is named; text that comes later is still read.  A stdin that speaks is not named."""
    p = start('-m', puppet, 'hello')
    assert read_line(p.stderr) == b'gemma4: reading stdin (end it, or </dev/null)\n'
    p.stdin.write(b'more')
    p.stdin.close()
    assert (p.wait(PATIENCE), p.stdout.read(), p.stderr.read()) == (0, ANSWER.encode() + b'\n', b'')
    assert run('-m', puppet, 'hello', stdin='text').stderr == b''


# ---------------------------------------------------------------------------------------------- options

def test_help_fits_one_screen():
    text = answer('--help')
    assert answer('-h') == text == answer('info', '--help')
    lines = text.splitlines()
    assert len(lines) <= 48 and max(map(len, lines)) <= 80
    for word in ('-i FILE', '--video', '--image-tokens', '--video-frames', '--raw', '--ids', '--jsonl', 'tokenize', '--plain', '--decode', 'render', 'score', '--top', '--logits', '--request',
                 'info', '--json', '-m', '-p', '-n', '--max-tokens', '-c', '--context', '-s', '--system', '--temp', '--top-k',
                 '--top-p', '--min-p', '--repeat-penalty', '--seed', '-t', '--threads', '--device', '--kv', '--exact', '--activations', '--fp4-activations', '--stats',
                 '--gpu-memory', '--cpu-experts', '--expert-slots', '--chunk', '--think', '--think-tokens', '--tools', '--run-tools', '--yes', '--json-schema', '--stream',
                 '--print-ids', '--ignore-eos', '-h', '--version', 'GEMMA4_MODEL', 'GEMMA4_DEVICE', '130',
                 '--draft', '--draft-tokens', '--draft-log', '--context-overflow', '--no-markdown', '--raw-output', '-q', '--quiet', '--cache', '--load', '--save', '--text', '--summary', '--reference', 'bench', '--scenario', '--plot'):
        assert re.search(r'(?<![\w-])%s(?![\w-])' % re.escape(word), text), word


def test_version():
    assert re.fullmatch(r'gemma4 \d+\.\d+\.\d+\n', answer('--version'))


def test_command_behind_options():
    """The only word behind the options may be the command."""
    for call in (('--', 'info'), ('--', 'inof'), ('-p', 'inof'), ('-p', 'info'), ('check', 'please'), ('hello',)):
        assert run('-m', ROOT / 'demo', '-n', 1, *call).returncode == 0
    assert answer('-m', ROOT / 'demo', 'info') == answer('info', '-m', ROOT / 'demo')
    assert answer('--plain', 'tokenize', stdin='hello', env=environment(GEMMA4_MODEL=ROOT / 'demo')) == \
        answer('tokenize', '-m', ROOT / 'demo', '--plain', stdin='hello')


@pytest.mark.parametrize('name, value', [
    ('GEMMA4_CPU', 'avx'), ('GEMMA4_CPU', 'amx' if ON_ARM else 'neon'), ('GEMMA4_DEVICE', 'gpu')])
def test_environment_that_is_not_known(name, value):
    assert name + ' ' + value in complaint(2, 'hello', env=environment(**{name: value}))


def test_empty_prompt(odd):
    for blank in '', ' \n\t':
        assert '-p is empty' in complaint(2, '-m', odd, '-p', blank)
    assert 'the question is empty' in complaint(2, '-m', odd, ' ')
    assert 'stdin is empty' in complaint(2, '-m', odd, stdin='\n \n')
    assert run('-m', odd, '--raw', '-p', ' ', '-n', 1).returncode == 0
    assert answer('-m', odd, '--raw', '-p', '', '-n', 1, '--temp', 0)


@pytest.mark.parametrize('call, word', [
    ('--bad', '--bad'), ('-Z', '-Z'), ('--raw -Zq', 'option -Z'), ('--quiet=x hello', 'option --quiet=x'),
    ('tokenize --bad', '--bad'), ('info -x', '-x'), ('-n', '-n'), ('hello -m', '-m'),
    ('--seed', '--seed'), ('--ids', '--ids'), ('--json=1 info', '--json'), ('-n x hello', '-n x'), ('-n -2 hello', '-n -2'),
    ('-n 3x hello', '3x'), ('-n 1.5 hello', '1.5'), ('--max-tokens= hello', 'needs a value'),
    ('-n 99999999999999999999 hello', '-n 9999'), ('-c 0 hello', '-c 0'), ('-c many hello', 'many'), ('-t 0 hello', '-t 0'),
    ('-t 100000 hello', '-t 100000'), ('--chunk 0 hello', '--chunk 0'), ('--chunk 1000000 hello', '--chunk'),
    ('--top -1 hello', '--top -1'), ('--temp -1 hello', '--temp -1'), ('--temp hot hello', 'hot'),
    ('--temp nan hello', 'nan'), ('--temp inf hello', 'inf'), ('--temp 0x1 hello', '--temp 0x1'), ('--temp 1e400 hello', '1e400'),
    ('--seed 1e3 hello', '1e3'), ('--seed 0x1 hello', '0x1'), ('--gpu-memory 0x1p3 hello', '--gpu-memory 0x1p3'), ('-n 0x10 hello', '0x10'),
    ('--top-k -1 hello', '--top-k'),
    ('--top-k 1.5 hello', '--top-k'), ('--top-p 1.1 hello', '--top-p'), ('--top-p -0.1 hello', '--top-p'),
    ('--min-p 2 hello', '--min-p'), ('--repeat-penalty 0 hello', '--repeat-penalty'), ('--seed x hello', '--seed x'),
    ('--seed 99999999999999999999 hello', '--seed'), ('--kv f16 hello', 'f16'), ('--device gpu hello', 'gpu'),
    ('-p - -n 1', 'without -p'), ('-s - hello', '-s -'), ('-p a b', '"b"'), ('--jsonl hello', '"hello"'), ('--jsonl -p a', '--jsonl'), ('--jsonl --raw', '--jsonl'),
    ('--jsonl --ids f', '--jsonl'), ('info --jsonl', '--jsonl'), ('--ids f -p a', '--ids'), ('--ids f hello', '"hello"'),
    ('--ids f --raw', '--raw'), ('tokenize hello', '"hello"'), ('info hello', '"hello"'), ('render -p hello', 'render'),
    ('tokenize --raw', 'tokenize'), ('info --ids f', 'info'), ('--plain hello', '--plain'), ('--decode hello', '--decode'),
    ('render --plain', '--plain'), ('--json hello', '--json'), ('tokenize --json', '--json'),
    ('hello --logits f', '--logits'), ('hello --request f', '--request'), ('score', 'score'), ('score --raw', 'score'),
    ('score -p a', 'score'), ('score --ids f --request f', 'score'), ('score --raw -p a --request f', 'score'),
    ('score --ids f --raw -p a', '--ids'), ('score --request f -p a', 'score'), ('', 'nothing to ask'),
    ('--exact --fp4-activations hello', '--fp4-activations'), ('--exact --activations 8 hello', '--activations 8'),
    ('--activations 12 hello', 'not 8, 16 or 32'), ('--activations 08 hello', 'not 8, 16 or 32'), ('--activations 8 --fp4-activations hello', '--activations'),
    ('--raw', 'nothing to ask'), ('--context-overflow drop hello', 'drop'), ('--context-overflow slide --raw -p x', 'conversations'),
    ('--cache f --raw -p x', '--cache'), ('--cache f --jsonl', '--cache'), ('info --cache f', '--cache'), ('--save f --ids g', '--save'),
    ('--load f -s x hello', '--load'), ('--cache', '--cache'), ('--raw -s x hello', '-s'), ('--ids f -s x', '-s'),
    ('--model= hello', '-m needs a value'), ('--json-schema= hello', '--json-schema needs a value'), ('--image= hello', '-i needs a value'),
    ('--file= hello', '-f needs a value'), ('--save= hello', '--save needs a value'), ('--temp= hello', '--temp needs a value'),
    ('--save - hello', '--save -: needs'), ('--cache - hello', '--cache -: needs'), ('score --ids f --logits -', '--logits -: needs'),
    ('bench --plot -', '--plot -: needs'), ('--draft d --draft-log - hello', '--draft-log -: needs'),
    ('--raw --think hello', '--think'), ('--ids f --think-tokens 5', '--think-tokens'), ('score --text f -s x', '-s'),
    ('--tmep 1 hello', '--tmep: did you mean --temp?'), ('--jsnol=x', '--jsnol=x: did you mean --jsonl?'), ('--tixt f', 'mean --text?'),
    ('--xyz', '--xyz (gemma4'), ('inof', 'the command info? -p inof'), ('-n 1 tokenise', 'the command tokenize?'),
    ('help', '-p help'), ('info --ignore-eos', '--ignore-eos'), ('info --temp 0', 'info draws no tokens'),
    ('info --jsonl', 'info and --jsonl'), ('score --raw -p a --text f', 'not several'), ('check --tools t --json-schema s', 'not both'),
    ('--tools - --json-schema - hello', 'only one option'), ('-f - --load - hello', 'only one option'), ('--temperature 200 hello', '--temperature 200'),
    ('-p a -p b', '-p is given twice'), ('-s a --system b hello', '-s is given twice'), ('--load f --load f hello', '--load is given twice'),
    ('--ids f --ids=g', '--ids is given twice'),
    ('info -s x', '-s: info makes'), ('tokenize --think', '--think: tokenize makes'), ('parse -s x', '-s: parse makes'),
    ('bench --temp 1', 'bench draws no tokens: the'), ('bench -n 1', 'bench -n 1: a rate'),
    ('--top 3 hello', '--top'), ('--jsonl --ignore-eos', '--ignore-eos'), ('--jsonl --print-ids', '--print-ids'),
])
def test_wrong_usage(odd, call, word):
    # GEMMA4_MODEL stands for -m, so that the call is exactly what the table says.
    text = complaint(2, *call.split(), env=environment(GEMMA4_MODEL=odd))
    assert word in text and '--help' in text


def test_the_last_setting_counts(odd):
    assert answer('-m', 'nowhere', '-m', odd, '-n', 20, '-n', 1, '--temp', 1, '--temp', 0, 'hello') == answer('-m', odd, '-n', 1, '--temp', 0, 'hello')


@pytest.mark.parametrize('option', ['-n', '--temp', '--seed'])
def test_blanks_before_a_number(odd, option):
    assert option + '  1' in complaint(2, '-m', odd, option, ' 1', 'hello')


def test_files_among_the_words(odd, tmp_path):
    """As from `-i *.png`, of which the shell gives -i the first alone; -p is always text."""
    for name in 'a', 'b':
        (tmp_path / name).write_text('text')
    for option in '-i', '-f', '--video':
        for words in ['b'], ['b', 'What?'], ['What?', 'b']:
            assert 'b is a file: each file needs' in complaint(2, '-m', odd, option, 'a', *words, cwd=tmp_path)
    assert run('-m', odd, '-n', 1, '-f', 'a', '-p', 'b', cwd=tmp_path).returncode == 0


@pytest.mark.parametrize('call', [
    'hello --save x -f y', 'hello --save x -i y', 'hello --save x --video y', 'hello --save x --cache y', 'hello --cache x --load y',
    'hello --cache x --tools y', 'hello --save x --json-schema y', 'hello --draft d --draft-log x -f y', 'score --ids y --logits x',
    'score --text y --logits x', 'score --request y --logits x', 'score --raw -p a --reference y --logits x',
    'bench --draft d --plot x --draft-log y'])
def test_one_file_for_two_purposes(odd, tmp_path, call):
    """What is written replaces nothing else that the call names, not under another name either."""
    (tmp_path / 'x').write_text('[]')
    (tmp_path / 'y').hardlink_to(tmp_path / 'x')
    assert 'names this file, too' in complaint(2, '-m', odd, *call.split(), cwd=tmp_path)
    assert (tmp_path / 'x').read_text() == '[]'


def test_one_new_file_for_two_purposes(odd, tmp_path):
    for call in ('--save a --cache a', '--save talk --cache talk.kv', '--load talk --cache talk.kv'):
        assert 'names this file, too' in complaint(2, '-m', odd, *call.split(), 'hello', cwd=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_file_of_stdout(odd, tmp_path):
    """The answer would be lost with the file that is replaced."""
    with open(tmp_path / 'out', 'wb') as out:
        done = run('-m', odd, '--save', tmp_path / 'out', 'hello', stdout=out)
    assert done.returncode == 2 and b'/out: stdout names this file, too' in done.stderr
    assert [f.name for f in tmp_path.iterdir()] == ['out']


def test_arguments_that_are_not_utf8(odd):
    latin = os.fsdecode(b'caf\xe9')
    for call, name in [((latin,), 'the question'), (('-p', latin), '-p'), (('-s', latin, 'hello'), '-s')]:
        assert name + ': not UTF-8 at byte 3' in complaint(2, '-m', odd, *call)
    assert run('-m', odd, '-n', 1, '--raw', '-p', latin).returncode == 0


def test_bad_device_in_the_environment(odd):
    assert 'GEMMA4_DEVICE gpu:' in complaint(2, '-m', odd, 'hello', env=environment(GEMMA4_DEVICE='gpu'))
    assert answer('-m', odd, 'hello', '-n', 1, '--device', 'cpu', env=environment(GEMMA4_DEVICE='gpu'))


@pytest.mark.parametrize('layout', ['odd-all', 'odd-bf16'])
def test_activations(checkpoint, layout):
    """32 bits are what --exact does on the CPU; 8 are other numbers, where the kernels have them for the model's matrices, and else a
    line says that they have none."""
    def scores(cpu, *options):
        done = run('score', '-m', checkpoint(layout), '--device', 'cpu', '--kv', 'f32', '--raw', '-p', 'hello ' * 40, *options, env=environment(GEMMA4_CPU=cpu))
        assert not done.returncode
        return done.stdout, done.stderr
    for cpu in 'avx2', 'avx2-vnni', 'avx512', 'amx':
        assert scores(cpu, '--activations', '32') == scores(cpu, '--exact')
        assert scores(cpu, '--activations', '16') == scores(cpu)
        rounded, said = scores(cpu, '--activations', '8')
        no_effect = b"gemma4: warning: --activations 8: this CPU's kernels have none for the formats of this model, so it has no effect\n"
        assert (rounded == scores(cpu)[0]) == (said == no_effect)
    assert b'--device plain computes with float32' in run('--device', 'plain', '--activations', 8, '-n', 1, 'hello').stderr


@pytest.mark.parametrize('device', ['cpu', 'auto'])
def test_settings_of_a_gpu_on_the_cpu(odd, device):
    """Each that is given is named, also where the CPU takes the place of a GPU that is missing."""
    env = environment(GEMMA4_DEVICE=device, GEMMA4_HEAD='whole', GEMMA4_CUDA='', CUDA_VISIBLE_DEVICES='')
    done = run('-m', odd, '-n', 1, '--expert-slots', 0, '--gpu-memory', 1, 'hello', env=env)
    assert re.findall('warning: on the CPU (.*) has no effect', done.stderr.decode()) == ['--gpu-memory', '--expert-slots', 'GEMMA4_HEAD']


def test_fp4_activations_on_the_cpu(puppet):
    """Refused in one line, by name, whatever there is to do."""
    needs = 'needs a GPU of compute capability 12.0 or 12.1'
    for call in ('hello',), ('info',), ('score', '--raw', '-p', 'hello'), ('bench',):
        text = complaint(1, *call, '-m', puppet, '--device', 'cpu', '--fp4-activations')
        assert text.startswith('gemma4: --fp4-activations') and needs.removeprefix('needs ') in text


def test_cuda_without_cuda(puppet):
    """The program as it was built: with --device cuda it answers or says in one line why not; otherwise it answers, and says on a
    terminal alone that it would have used a GPU if there were one."""
    by_name, auto = (run('-m', puppet, 'hello', env=environment(GEMMA4_DEVICE=device)) for device in ('cuda', 'auto'))
    assert (auto.returncode, auto.stdout.decode()) == (0, ANSWER + '\n')
    if by_name.returncode == 0:
        assert (by_name.stdout, by_name.stderr, auto.stderr) == (auto.stdout, b'', b'')
        return
    why = complaint(1, '-m', puppet, 'hello', '--device', 'cuda').removeprefix('gemma4: --device cuda: ').rstrip()
    assert auto.stderr == b''
    script = 'exec "$0" -m "$1" %s hello </dev/null >/dev/null'
    said, quiet = (pexpect.spawn('sh', ['-c', script % option, GEMMA4, str(puppet)], timeout=PATIENCE, encoding='utf-8',
                                 env=environment(GEMMA4_DEVICE='auto')).read() for option in ('', '-q'))
    using = '' if why == 'this program was built without CUDA' else 'gemma4: %s: using the CPU\n' % why
    assert (said.replace('\r', ''), quiet) == (using, '')


def test_nul_on_stdin(puppet):
    text = complaint(1, '-m', puppet, 'hello', stdin=b'a\0b')
    assert 'stdin' in text and 'NUL' in text


@pytest.mark.parametrize('call', ['--ids -', 'score --ids -', 'score --request -', 'score --raw -p a --summary --reference -', '--load - x', '--tools - x',
                                  '--json-schema - x', '-f - x', '-i - x', '--video - x', 'render', 'tokenize --decode', ''])
def test_messages_name_stdin(puppet, call):
    assert complaint(1, *call.split(), '-m', puppet, stdin=b'{"a\xff').startswith('gemma4: stdin: ')


@pytest.mark.parametrize('call, what', [('--jsonl', ', a request a line'), ('tokenize', ''), ('parse', '')])
def test_stdin_that_is_a_terminal(puppet, call, what):
    """A line says that it is read, but not of a pipe."""
    assert run(call, '-m', puppet).stderr == b''
    child = pexpect.spawn(GEMMA4, [call, '-m', str(puppet)], env=environment(), encoding='utf-8', timeout=PATIENCE)
    child.expect_exact('gemma4: reading stdin%s (Ctrl-D ends it)\r\n' % what)
    if call != '--jsonl':
        child.sendline('text')
    child.sendeof()                     # one is enough
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


@pytest.mark.parametrize('call', [['tokenize'], ['render'], [], ['--raw']], ids=' '.join)
def test_stdin_that_cannot_be_read(puppet, call):
    done = subprocess.run(['sh', '-c', '"$0" "$@" < /', GEMMA4, *call, '-m', puppet], capture_output=True, env=environment(),
                          timeout=PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (1, b'', b'gemma4: stdin: Is a directory\n')


def test_closed_standard_files(puppet, tmp_path):
    """Closed, not empty: no file that is opened later may take their place."""
    def shell(redirection, *args):
        call = ['sh', '-c', '"$0" "$@" ' + redirection, GEMMA4, *map(str, args)]
        return subprocess.run(call, capture_output=True, env=environment(), timeout=PATIENCE)
    done = shell('<&-', '-m', puppet, 'hello')
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, ANSWER + '\n', b'')
    done = shell('>&-', 'score', '-m', puppet, '--raw', '-p', 'The', '--logits', tmp_path / 'logits')
    assert done.returncode == 1 and done.stderr.startswith(b'gemma4: stdout: ')
    assert os.listdir(tmp_path) == []
    assert shell('2>&-', '-m', puppet, 'hello').stdout.decode() == ANSWER + '\n'
    assert shell('2>&-', 'info', '-m', tmp_path).returncode == 1


# ---------------------------------------------------------------------------------------------- tokenize

DEMO_CASES = cases('demo_tokenizer.jsonl')


@pytest.mark.parametrize('begin', range(0, len(DEMO_CASES), 40))
def test_tokenize_as_sentencepiece(demo, begin):
    for case in DEMO_CASES[begin:begin + 40]:
        assert tokenize(demo, case['text']) == case['ids'], case['text']
        if '▁' not in case['text']:
            assert decode(demo, case['ids']).decode() == case['text']


def test_stdin_counts_byte_for_byte(odd):
    plain, line = tokenize(odd, 'hello'), tokenize(odd, 'hello\n')
    assert line == plain + tokenize(odd, '\n')
    assert tokenize(odd, 'hello\r\n') == plain + tokenize(odd, '\r\n')
    assert tokenize(odd, '') == []
    assert tokenize(odd, ' hello') != plain
    bos, = tokenize(odd, '<bos>')
    assert bos not in plain


def test_control_tokens(odd):
    added = {t['content']: t['id'] for t in read_json(odd / 'tokenizer.json')['added_tokens']}
    text = 'a<|turn>user\nb<turn|><bos>c'
    ids = tokenize(odd, text)
    for name in ('<|turn>', '<turn|>', '<bos>'):
        assert ids.count(added[name]) == 1 and tokenize(odd, name) == [added[name]]
    plain = tokenize(odd, text, '--plain')
    assert not set(plain) & set(added.values())
    assert decode(odd, ids) == decode(odd, plain) == text.encode()
    assert tokenize(odd, 'a b', '--plain') == tokenize(odd, 'a b')


@pytest.mark.parametrize('text', [
    b'', b'\n', b' ', b'hello', b'hello\n', 'é…日本🙂\u0301'.encode(), bytes(range(256)), b'\xff\xfe\x80', b'\xe2\x82', b'\xf0\x9f\x99',
    b'\xed\xa0\x80', b'a\x00b', b'\r\n\r\n', b'<turn|' + b'\xc3', b'  ' * 50, b'\xc0\xaf' * 9], ids=repr)
@pytest.mark.parametrize('options', [[], ['--plain']], ids=str)
def test_any_bytes_come_back(odd, demo, text, options):
    for model in (odd, demo):
        assert decode(model, tokenize(model, text, *options)) == text


def test_decode_adds_no_newline_and_takes_any_white_space(odd):
    ids = tokenize(odd, 'a b')
    assert run('tokenize', '--decode', '-m', odd, stdin='\n\t '.join(map(str, ids)) + '\n\n').stdout == b'a b'
    assert run('tokenize', '--decode', '-m', odd, stdin='').stdout == b''


@pytest.mark.parametrize('text', ['1 x', 'x', '-1', '512', '99999999999999999999999', '1,2', '1.5', '0x1', '1 2]', '1\0'])
def test_decode_bad_ids(odd, text):
    assert 'stdin' in complaint(1, 'tokenize', '--decode', '-m', odd, stdin=text)


def test_tokenize_needs_the_tokenizer_only(odd, tmp_path):
    want = tokenize(odd, 'hello <turn|>')
    shutil.copyfile(odd / 'tokenizer.json', tmp_path / 'tokenizer.json')
    assert tokenize(tmp_path, 'hello <turn|>') == want


def test_options_are_documented():
    """Every option of --help stands in the man page and in both completions."""
    said = answer('--help')
    words = set(re.findall(r'--[a-z][a-z-]+', said)) - {'--ids'}
    manual = (ROOT / 'gemma4.1').read_text().replace('\\-', '-')
    for text in (manual, (ROOT / 'completion.bash').read_text(), (ROOT / 'completion.zsh').read_text()):
        assert [w for w in words if not re.search(re.escape(w) + r'(?![a-z-])', text)] == []
    subprocess.run(['bash', '-n', ROOT / 'completion.bash'], check=True)


def test_completion_of_names_with_blanks(tmp_path):
    (tmp_path / 'a b.png').touch()
    script = 'source "$0"; _gemma4 gemma4 a -i; printf "%s\\n" "${COMPREPLY[@]}"'
    assert subprocess.run(['bash', '-c', script, ROOT / 'completion.bash'], cwd=tmp_path, capture_output=True).stdout == b'a b.png\n'


# ---------------------------------------------------------------------------------------------- render

def render(model, request, *options):
    return answer('render', '-m', model, *options, stdin=json.dumps(request))


@pytest.fixture(scope='session')
def tokenizer_alone(odd, tmp_path_factory):
    path = tmp_path_factory.mktemp('alone')
    shutil.copyfile(odd / 'tokenizer.json', path / 'tokenizer.json')
    return path


@pytest.mark.parametrize('case', cases('chat_cases.jsonl'), ids=lambda c: c['name'] + (', thinking' if c['thinking'] else ''))
def test_render_as_the_template(tokenizer_alone, case):
    request = {'messages': case['messages'], 'tools': case['tools'], 'chat_template_kwargs': {
        'enable_thinking': case['thinking'], 'preserve_thinking': case['preserve_thinking']}}
    assert render(tokenizer_alone, request, '-q') == case['rendered']
    ids = [int(word) for word in render(tokenizer_alone, request, '-q', '--ids').split()]
    if '▁' not in case['rendered']:
        assert decode(tokenizer_alone, ids).decode() == case['rendered']


def test_rendered_ids_are_those_of_the_text(odd):
    """As one word with the template's text beside it: where nobody has pasted control tokens, the ids are those of the whole."""
    request = {'messages': [{'role': 'user', 'content': '  hello there\n'}, {'role': 'assistant', 'content': 'that is it'},
                            {'role': 'user', 'content': '\nthat is what?'}]}
    assert ids_of('render', '--ids', '-m', odd, stdin=json.dumps(request)) == tokenize(odd, render(odd, request))


def test_pasted_control_tokens_are_text(odd):
    request = {'messages': [{'role': 'user', 'content': 'a<turn|>b'}]}
    end, = tokenize(odd, '<turn|>')
    assert ids_of('render', '--ids', '-m', odd, stdin=json.dumps(request)).count(end) == 1
    assert 'a<turn|>b<turn|>' in render(odd, request)


def test_render_options(odd):
    request = {'messages': [{'role': 'user', 'content': 'hi'}]}
    system = {'role': 'system', 'content': 'Be brief.'}
    full = {'messages': [system] + request['messages']}
    assert render(odd, request, '-s', 'Be brief.') == render(odd, full)
    assert render(odd, full, '-s', 'Be long.') == render(odd, full)
    thinking = dict(request, chat_template_kwargs={'enable_thinking': True})
    assert render(odd, request, '--think') == render(odd, thinking) != render(odd, request)
    assert render(odd, dict(request, chat_template_kwargs={'enable_thinking': False}), '--think') == render(odd, request)
    parts = [{'type': 'text', 'text': 'a'}, {'type': 'image'}, {'type': 'image_url'}, {'type': 'video_url'}]
    media = {'messages': [{'role': 'user', 'content': parts}]}
    assert 'a<|image|><|image|><|video|><turn|>' in render(odd, media)


BAD_REQUESTS = [
    ('', 'JSON'), ('{', 'JSON'), ('[]', 'JSON'), ('{"messages": []} x', 'JSON'), ('{}', 'messages'),
    ('{"messages": []}', 'messages'), ('{"messages": "hi"}', 'messages'), ('{"messages": [1]}', 'messages[0]'),
    ('{"messages": [{"content": "x"}]}', 'messages[0].role'), ('{"messages": [{"role": "wizard"}]}', 'messages[0].role'),
    ('{"messages": [{"role": "user", "content": 5}]}', 'messages[0].content'),
    ('{"messages": [{"role": "user", "content": "x"}, {"role": "user", "content": [{"type": "input_audio"}]}]}', 'messages[1].content[0].type'),
    ('{"messages": [{"role": "user", "content": [{"type": "text"}]}]}', 'messages[0].content[0].text'),
    ('{"messages": [{"role": "user"}], "temperature": "x"}', 'temperature'),
    ('{"messages": [{"role": "tool", "content": "x"}]}', 'messages[0]'),
    (b'{"messages": [{"role": "user", "content": "a"}], "stop": "\\u0000"}', 'a NUL character'),
]


@pytest.mark.parametrize('text, word', BAD_REQUESTS, ids=repr)
def test_render_bad_request(tokenizer_alone, text, word):
    message = complaint(1, 'render', '-m', tokenizer_alone, stdin=text)
    assert 'stdin' in message and word in message


# ---------------------------------------------------------------------------------------------- score

def score(model, *options):
    return [json.loads(line) for line in answer('score', '-m', model, *options).splitlines()]


def log_softmax(row):
    top = max(row)
    total = math.log(math.fsum(math.exp(x - top) for x in row)) + top
    return [x - total for x in row]


@pytest.mark.parametrize('options', [[], ['--chunk', 7], ['--exact']], ids=str)
def test_score_lines(odd, tmp_path, options):
    """Each line against the logits file: position i tells how likely its token was after i - 1, and what is likely after it."""
    text = 'The command is one: <|turn>é of it. ' * 3
    ids = tokenize(odd, '<bos>' + text)
    lines = score(odd, '--raw', '-p', text, '--logits', tmp_path / 'logits', '--top', 4, *options)
    assert [(line['pos'], line['id']) for line in lines] == list(enumerate(ids))
    assert all(line['token'] == decode(odd, [line['id']]).decode(errors='replace') for line in lines[::7])
    floats = read_floats(tmp_path / 'logits')
    assert len(floats) == len(ids) * 519
    rows = [log_softmax(floats[i * 519:i * 519 + 519]) for i in range(len(ids))]
    assert lines[0]['logprob'] is None
    for i, line in enumerate(lines):
        assert set(line) == {'pos', 'id', 'token', 'logprob', 'top'}
        if i:
            assert line['logprob'] == pytest.approx(rows[i - 1][ids[i]], abs=1e-4)
        best = sorted(range(519), key=lambda id: -rows[i][id])[:4]
        assert [id for id, _ in line['top']] == best
        assert [p for _, p in line['top']] == pytest.approx([rows[i][id] for id in best], abs=1e-4)


def test_score_takes_text_ids_and_requests(odd, tmp_path):
    request = write_json(tmp_path / 'request.json', {'messages': [{'role': 'user', 'content': 'a <turn|> b'}]})
    ids = ids_of('render', '--ids', '-m', odd, stdin=request.read_text())
    file = write_ids(tmp_path / 'ids', ids)
    lines = score(odd, '--request', request)
    assert [line['id'] for line in lines] == ids
    assert score(odd, '--ids', file) == lines
    assert score(odd, '--raw', '-p', '<bos>a') == score(odd, '--raw', '-p', 'a')


def test_score_top(odd):
    assert [len(line['top']) for line in score(odd, '--raw', '-p', 'a')] == [5, 5]
    assert [line['top'] for line in score(odd, '--raw', '-p', 'a', '--top', 0)] == [[], []]
    assert [len(line['top']) for line in score(odd, '--raw', '-p', 'a', '--top', 1000)] == [519, 519]


def test_score_does_not_hang_on_sampling(odd):
    """Probabilities are those before temperature and penalties, so that such an option has no effect: it is refused."""
    for option in ('--temp', 0), ('--top-k', 3), ('--top-p', 1), ('--min-p', 0), ('--repeat-penalty', 2), ('--seed', 1), ('-n', 5):
        assert 'score draws no tokens' in complaint(2, 'score', '-m', odd, '--raw', '-p', 'The', *option)


def test_score_errors(odd, tmp_path):
    missing = tmp_path / 'missing'
    for option in ('--ids', '--request'):
        assert str(missing) in complaint(1, 'score', '-m', odd, option, missing)
    text = complaint(1, 'score', '-m', odd, '--raw', '-p', 'a', '--logits', missing / 'x')
    assert str(missing / 'x') in text
    assert '-c' in complaint(1, 'score', '-m', odd, '--raw', '-p', 'a b c d e f', '-c', 3)
    done = run('score', '-m', odd, '--raw', '-p', 'a b c', '--logits', '/dev/full')
    assert (done.returncode, done.stderr) == (1, b'gemma4: /dev/full: No space left on device\n')


def test_logits_whole_or_not_at_all(start, odd, tmp_path):
    """On a full disk, where stdout fails, and where a signal comes: the old file stays, and nothing is beside it."""
    file, ids = tmp_path / 'logits', write_ids(tmp_path / 'ids', [5] * 40)
    file.write_text('old')
    call = ('score', '-m', odd, '--ids', ids, '--logits', file)
    assert '%s: File too large' % file in complaint(1, *call, '--summary', preexec_fn=small_files)
    with open('/dev/full', 'wb') as full:
        assert run(*call, stdout=full).returncode == 1
    p = start(*call, '--top', 1000, stdin=subprocess.DEVNULL)      # more than a pipe holds
    read_line(p.stdout)
    p.stdout.close()
    assert p.wait(PATIENCE) == 128 + signal.SIGPIPE
    assert file.read_text() == 'old' and sorted(os.listdir(tmp_path)) == ['ids', 'logits']
    answer(*call)
    assert file.stat().st_size > 1 << 16 and file.stat().st_mode == ids.stat().st_mode


@pytest.mark.parametrize('text, word', BAD_REQUESTS, ids=repr)
def test_score_bad_request(odd, tmp_path, text, word):
    file = tmp_path / 'request.json'
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    message = complaint(1, 'score', '-m', odd, '--request', file)
    assert str(file) in message and word in message


def test_score_refuses_images(odd, tmp_path):
    request = write_json(tmp_path / 'request.json', {'messages': [{'role': 'user', 'content': [{'type': 'image'}]}]})
    assert 'image' in complaint(1, 'score', '-m', odd, '--request', request)
