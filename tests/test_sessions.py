"""A saved conversation: FILE, and the cache beside it in FILE.kv, which may be another's, damaged or hostile."""
import json
import os
import re
import resource
import shutil
import signal
import stat
import struct
import subprocess

import pytest

from conftest import EMULATED, FIXTURES, complaint, read_json, run, write_json
from test_repl import IMAGES, LOOK, Chat, chat  # noqa: F401 (a fixture)

QUESTION = 'The old man who counts them writes the number in a book with a blue cover.'
SMALL = ('--temp', 0, '-n', 20, '--chunk', 5)
LONG = ('-n', 120, '--image-tokens', 70)        # a ring holds the window and a picture, and an answer is longer
HEADER = struct.Struct('<8s16sQQiiqqqQ200s')         # struct Header in saved.c
MAGIC, VERSION, MODEL, OF, DTYPE, NUMBERS, N, N_SEEN, LOW, ADAPTERS, NAMES = range(11)


def reused(c):
    """Of the last prompt: its tokens, and how many of them the cache held."""
    found = re.search(r'prompt: (\d+) tokens(?: \((\d+) reused\))?', c.say('/stats'))
    return int(found[1]), int(found[2] or 0)


def saved(chat, model, file, *options, questions=(QUESTION,), **kwargs):
    """A conversation saved to file, and gone on with: its messages, and reused()."""
    c = chat(model, *options, **kwargs)
    for question in questions:
        c.say(question)
    assert c.say('/save %s' % file).startswith('(')
    c.say('and?')
    return c.messages(), reused(c)


def loaded(chat, model, file, *options, **kwargs):
    """The same for one that is loaded; and what the program says of that."""
    c = chat(model, *options, **kwargs)
    said = c.say('/load %s' % file)
    c.say('and?')
    return c.messages(), reused(c), said


@pytest.mark.parametrize('options', [('--kv', 'bf16'), ('--kv', 'fp8'), ('--exact',), LONG, (*LONG, '--kv', 'fp8'), ('--chunk', 400)],
                         ids=lambda o: ' '.join(map(str, o)))
@pytest.mark.parametrize('model', ['odd-bf16', 'odd-all', 'dense'])
def test_goes_on_at_once(chat, tmp_path, model, options):
    """The first prompt after /load is answered as in the process that went on, and no more of it is read again."""
    options = (*SMALL, *options)
    questions = (QUESTION, 'What is in it?')
    messages, (prompt, held) = saved(chat, FIXTURES / model, tmp_path / 'a', *options, questions=questions)
    again, (n, now), said = loaded(chat, FIXTURES / model, tmp_path / 'a', *options)
    assert again == messages and said == '(4 messages from %s)' % (tmp_path / 'a')
    assert (n, now) == (prompt, held) and held > 30
    for name in ('a', 'a.kv'):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
    assert list(tmp_path.glob('*.tmp')) == []


def test_other_rings(chat, tmp_path, odd):
    """The cache does not depend on --chunk, -c and --threads, as long as it fits."""
    messages, used = saved(chat, odd, tmp_path / 'a', '--chunk', 300, '--exact', *SMALL[:4])
    for options in (SMALL, (*SMALL, '-c', 300), (*SMALL, '--threads', 1)):
        assert loaded(chat, odd, tmp_path / 'a', '--exact', *options)[:2] == (messages, used)


def test_going_back(chat, tmp_path, odd):
    """Behind what the rings still hold."""
    options = (*SMALL, *LONG, '--exact')
    saved(chat, odd, tmp_path / 'a', *options, questions=(QUESTION, 'What is in it?'))
    answers = []
    for _ in range(2):
        c = chat(odd, *options)
        c.say('/load %s' % (tmp_path / 'a'))
        c.say('/undo')
        c.say('What colour?')
        answers.append(c.messages())
        (tmp_path / 'a.kv').unlink(missing_ok=True)     # the second time without it
    assert answers[0] == answers[1]


def test_images(chat, tmp_path):
    """What was seen is not looked at again, unless the file has changed."""
    image = tmp_path / 'picture.png'
    shutil.copyfile(IMAGES / 'rgb.png', image)
    model = IMAGES / 'seeing'
    c = chat(model, *LOOK)
    c.say('/image %s' % image)
    c.say('What?')
    c.say('/save %s' % (tmp_path / 'a'))
    c.say('and?')
    messages, (prompt, held) = c.messages(), reused(c)
    assert held > 60
    assert loaded(chat, model, tmp_path / 'a', *LOOK)[:2] == (messages, (prompt, held))
    shutil.copyfile(IMAGES / 'grey.png', image)
    assert loaded(chat, model, tmp_path / 'a', *LOOK)[1][1] < 10


def test_only_the_conversation_is_saved(chat, tmp_path, odd):
    """After /new the cache still holds the old conversation: it is nobody's business any more."""
    c = chat(odd, *SMALL)
    c.say(QUESTION)
    c.say('/save %s' % (tmp_path / 'a'))
    c.say('/new')
    c.say('/save %s' % (tmp_path / 'b'))
    a, b = [(tmp_path / name).read_bytes() for name in ('a.kv', 'b.kv')]
    assert HEADER.unpack(a[:HEADER.size])[N] > 20
    assert len(b) == HEADER.size and HEADER.unpack(b)[N] == 0


@pytest.mark.parametrize('split', [(), ('--cpu-experts', 2)])
def test_gpu(chat, tmp_path, odd, split):
    """Saved and loaded where the cache is the device's; and carried from there to the CPU."""
    if not EMULATED.exists():
        pytest.skip('the emulated GPU is not built')
    gpu = {'program': str(EMULATED), 'env': {'GEMMA4_DEVICE': 'cuda'}}
    messages, used = saved(chat, odd, tmp_path / 'a', '--exact', *SMALL, *split, **gpu)
    assert used[1] > 20
    assert loaded(chat, odd, tmp_path / 'a', '--exact', *SMALL, *split, **gpu)[:2] == (messages, used)
    assert loaded(chat, odd, tmp_path / 'a', '--exact', *SMALL)[:2] == (messages, used)


def test_fp4_activations(chat, tmp_path):
    """A cache that was made with them is not one that was made without."""
    if not EMULATED.exists():
        pytest.skip('the emulated GPU is not built')
    gpu, model, file = {'program': str(EMULATED), 'env': {'GEMMA4_DEVICE': 'cuda'}}, FIXTURES / 'odd-experts', tmp_path / 'a'
    messages, used = saved(chat, model, file, '--fp4-activations', '--temp', 0, '-n', 5, **gpu)
    again, n, said = loaded(chat, model, file, '--fp4-activations', '--temp', 0, '-n', 5, **gpu)
    assert (again, n, said) == (messages, used, '(2 messages from %s)' % file) and n[1] > 20
    said = loaded(chat, model, file, '--temp', 0, '-n', 5, **gpu)[2]
    assert 'of a run with another --kv, --exact, --activations or --fp4-activations' in said and 'will be read again' in said


# ---------------------------------------------------------------------------------------------- another's cache

@pytest.fixture(scope='module')
def pair(tmp_path_factory, odd):
    """A saved conversation, the bytes of both files, and how it goes on."""
    home = tmp_path_factory.mktemp('pair')
    c = Chat(home, odd, *SMALL)
    c.say(QUESTION)
    c.say('/save %s' % (home / 'a'))
    c.say('and?')
    messages = c.messages()
    c.child.close(force=True)
    return (home / 'a').read_bytes(), (home / 'a.kv').read_bytes(), messages


def put(tmp_path, text, kv):
    (tmp_path / 'a').write_bytes(text)
    (tmp_path / 'a.kv').write_bytes(kv)
    return tmp_path / 'a'


@pytest.mark.parametrize('model, options, why', [
    ('odd-bf16', ('--kv', 'fp8'), 'another --kv, --exact'), ('odd-bf16', ('--exact',), 'another --kv, --exact, --act'),
    ('odd-experts', (), 'another model'), ('odd-bf16', ('-c', 25), 'the context of 25'),
])
def test_another_run(chat, tmp_path, pair, model, options, why):
    """Noticed, and said in one line; the conversation is there all the same."""
    file = put(tmp_path, *pair[:2])
    c = chat(FIXTURES / model, *SMALL, *options)
    lines = c.say('/load %s' % file).split('\n')
    assert len(lines) == 2 and why in lines[0] and 'will be read again' in lines[0] and str(file) + '.kv: ' in lines[0]
    assert lines[1] == '(2 messages from %s)' % file
    if '-c' not in options:
        c.say('and?')
        assert reused(c)[1] == 0


def test_same_weights_elsewhere(chat, tmp_path, pair, odd):
    """The model is known by its content: a copy is the same, one other weight is not."""
    file = put(tmp_path, *pair[:2])
    model = shutil.copytree(odd, tmp_path / 'copy', copy_function=shutil.copyfile)
    assert loaded(chat, model, file, *SMALL)[::2] == (pair[2], '(2 messages from %s)' % file)
    weights = bytearray((model / 'model.safetensors').read_bytes())
    begin = 8 + struct.unpack_from('<Q', weights)[0]
    weights[begin:] = weights[begin + 2:] + weights[begin:begin + 2]
    (model / 'model.safetensors').write_bytes(weights)
    assert 'another model' in chat(model).say('/load %s' % file)


def test_edited_conversation(chat, tmp_path, pair, odd):
    file = put(tmp_path, pair[0].replace(b'blue', b'grey'), pair[1])
    messages, (_, held), said = loaded(chat, odd, file, *SMALL)
    assert 'another state of the conversation' in said and held == 0
    assert 'grey' in messages[0]['content']


def test_numbers_as_written(chat, tmp_path, odd):
    """What is loaded is saved again digit by digit."""
    arguments = '{"n":[12345678901234567890,1.0,1e400,-0]}'
    text = '{"chat_template_kwargs":{"enable_thinking":false},"messages":[{"role":"user","content":"a"},{"role":"assistant",' \
           '"tool_calls":[{"id":"1","function":{"name":"f","arguments":%s}}]},{"role":"tool","tool_call_id":"1","content":"1"}]}\n' % arguments
    (tmp_path / 'a').write_text(text)
    c = chat(odd)
    c.say('/load %s' % (tmp_path / 'a'))
    c.say('/save %s' % (tmp_path / 'b'))
    assert (tmp_path / 'b').read_text() == text


def test_a_conversation_of_two_readings(odd, tmp_path):
    for text, says in [(b'{"messages": [], "a\xff": 1}', 'not UTF-8 at byte 19'), (b'{"messages": [], "messages": []}', 'messages stands twice')]:
        (tmp_path / 'a').write_bytes(text)
        assert complaint(1, '-m', odd, '--load', tmp_path / 'a', '-p', 'x') == 'gemma4: %s: %s\n' % (tmp_path / 'a', says)


def test_no_cache(chat, tmp_path, pair, odd):
    """A conversation that was written by hand: nothing to say."""
    file = put(tmp_path, *pair[:2])
    (tmp_path / 'a.kv').unlink()
    assert loaded(chat, odd, file, *SMALL) == (pair[2], (loaded(chat, odd, file, *SMALL)[1][0], 0), '(2 messages from %s)' % file)


def changed(kv, field, value):
    fields = list(HEADER.unpack(kv[:HEADER.size]))
    fields[field] = value(fields[field]) if callable(value) else value
    return HEADER.pack(*fields) + kv[HEADER.size:]


def word(kv, at, value, size='<i'):
    return kv[:at] + struct.pack(size, value) + kv[at + struct.calcsize(size):]


BAD = {
    'empty': (lambda kv: b'', 'no saved cache'),
    'a byte': (lambda kv: kv[:1], 'no saved cache'),
    'half a header': (lambda kv: kv[:HEADER.size - 1], 'no saved cache'),
    'other bytes': (lambda kv: b'x' * len(kv), 'no saved cache'),
    'version': (lambda kv: changed(kv, VERSION, b'0.0.9'), 'another version'),
    'header alone': (lambda kv: kv[:HEADER.size], 'damaged'),
    'cut': (lambda kv: kv[:-1], 'damaged'),
    'longer': (lambda kv: kv + b'x', 'damaged'),
    'n negative': (lambda kv: changed(kv, N, -1), 'damaged'),
    'n most negative': (lambda kv: changed(kv, N, -2**63), 'damaged'),
    'n one less': (lambda kv: changed(kv, N, lambda n: n - 1), 'damaged'),
    'n one more': (lambda kv: changed(kv, N, lambda n: n + 1), 'damaged'),
    'n huge': (lambda kv: changed(kv, N, 2**63 - 1), 'more than the context'),
    'n wraps': (lambda kv: changed(kv, N, 2**61), 'more than the context'),
    'pictures negative': (lambda kv: changed(kv, N_SEEN, -1), 'damaged'),
    'pictures huge': (lambda kv: changed(kv, N_SEEN, 2**60), 'damaged'),
    'low negative': (lambda kv: changed(kv, LOW, -1), 'damaged'),
    'low huge': (lambda kv: changed(kv, LOW, 2**62), 'damaged'),
    'low beyond the window': (lambda kv: changed(kv, LOW, lambda low: low + 30), 'damaged'),
    'id negative': (lambda kv: word(kv, HEADER.size, -1), 'damaged'),
    'id beyond the vocabulary': (lambda kv: word(kv, HEADER.size + 4, 1 << 30), 'damaged'),
}
for name, (at, n) in {'picture before': (-1, 2), 'picture behind': (1 << 30, 1), 'picture too long': (3, 2**31 - 1),
                      'picture of nothing': (3, 0), 'picture of less': (3, -5)}.items():
    def with_picture(kv, at=at, n=n):
        end = HEADER.size + 4 * HEADER.unpack(kv[:HEADER.size])[N]
        return changed(kv[:end], N_SEEN, 1) + struct.pack('<iiQ', at, n, 5) + kv[end:]
    BAD[name] = (with_picture, 'damaged')


def test_bad_cache(chat, tmp_path, pair, odd):
    """Each is said in a line that names the file, and the conversation goes on as if there were none."""
    c = chat(odd, *SMALL)
    for name, (spoil, why) in BAD.items():
        file = put(tmp_path, pair[0], spoil(pair[1]))
        line, last = c.say('/load %s' % file).split('\n')
        assert re.fullmatch(r'gemma4: %s\.kv: [^:]*%s[^:]*: the conversation will be read again' % (re.escape(str(file)), why), line), name
        assert last == '(2 messages from %s)' % file
    c.say('and?')
    assert (c.messages(), reused(c)[1]) == (pair[2], 0)


@pytest.mark.parametrize('byte', [0xff, 0x7f])
def test_cache_full_of_nan(chat, tmp_path, odd, byte):
    """It cannot be told from a good one; but its answer can."""
    for kv in ('bf16', 'fp8'):
        saved(chat, odd, tmp_path / 'a', '--kv', kv, *SMALL)
        data = (tmp_path / 'a.kv').read_bytes()
        end = HEADER.size + 4 * HEADER.unpack(data[:HEADER.size])[N]
        (tmp_path / 'a.kv').write_bytes(data[:end] + bytes([byte]) * (len(data) - end))
        c = chat(odd, '--kv', kv, *SMALL)
        c.say('/load %s' % (tmp_path / 'a'))
        assert 'a weight or a loaded kv cache is damaged' in c.say('and?')
        c.say('/new')
        assert 'damaged' not in c.say('and?')


def test_no_regular_file(chat, tmp_path, pair, odd):
    """A directory, a FIFO nobody writes to, a file that may not be read, in the place of the cache."""
    file = put(tmp_path, *pair[:2])
    kv = tmp_path / 'a.kv'
    kv.unlink()
    c = chat(odd)
    kv.mkdir()
    assert 'a.kv: no regular file' in c.say('/load %s' % file)
    assert 'Is a directory' in c.say('/save %s' % file)
    kv.rmdir()
    os.mkfifo(kv)
    assert 'a.kv: no regular file' in c.say('/load %s' % file)
    kv.unlink()
    kv.symlink_to('a.kv')
    assert 'a.kv: Too many' in c.say('/load %s' % file)


def test_what_save_does_not_replace(tmp_path, odd):
    """A FIFO stays (a device would, too), and so does a symbolic link: the file that it leads to is replaced."""
    for name in 'fifo', 'talk.kv':
        os.mkfifo(tmp_path / name)
        done = run('-m', odd, '-n', 3, '--save', tmp_path / name.removesuffix('.kv'), 'hello')
        assert done.returncode == 1 and '%s: no regular file' % (tmp_path / name) in done.stderr.decode()
        assert stat.S_ISFIFO((tmp_path / name).stat().st_mode)
    link, target = tmp_path / 'link', tmp_path / 'target'
    target.write_text('old')
    link.symlink_to('target')
    shot(odd, '--save', link, 'hello')
    assert link.is_symlink() and len(read_json(target)['messages']) == 2
    assert sorted(os.listdir(tmp_path)) == ['fifo', 'link', 'link.kv', 'talk.kv', 'target']


# ---------------------------------------------------------------------------------------------- faults while saving

def small_files():
    """Writing beyond 64 KB fails, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, resource.RLIM_INFINITY))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)       # Python ignores it


def check_survival(c, home, why):
    """The files that are there stay as they are, and nothing else is left behind but the history."""
    def files():
        return {f.name: f.read_bytes() for f in home.iterdir() if f.name != '.gemma4_history'}
    before = files()
    assert {'a', 'a.kv'} <= set(before)
    c.say(QUESTION)
    said = c.say('/save %s' % (home / 'a'))
    assert re.fullmatch(r'gemma4: %s(\.kv)?: %s' % (re.escape(str(home / 'a')), why), said)
    assert files() == before


def test_full_disk(chat, tmp_path, pair, odd):
    put(tmp_path, *pair[:2])
    check_survival(chat(odd, *SMALL, '--exact', preexec_fn=small_files), tmp_path, 'File too large')


@pytest.mark.parametrize('nth', [1, 2])
def test_failing_fsync(chat, tmp_path, pair, odd, nth):
    """Of the first file, and of the second."""
    shim = tmp_path / 'shim.so'
    source = '#include <errno.h>\nint fsync(int fd) { static int n; (void)fd; return ++n == %d ? (errno = EIO, -1) : 0; }\n' % nth
    subprocess.run(['cc', '-shared', '-fPIC', '-x', 'c', '-o', shim, '-'], input=source.encode(), check=True)
    put(tmp_path, *pair[:2])
    check_survival(chat(odd, *SMALL, env={'LD_PRELOAD': shim, 'ASAN_OPTIONS': 'verify_asan_link_order=0'}), tmp_path, 'Input/output error')


def test_a_file_of_another_process(chat, tmp_path, odd):
    """In a container all processes may have the number 1: what another one is writing, or has left behind, stays as it is."""
    c = chat(odd, *SMALL)
    other = tmp_path / ('a.%d.tmp' % c.child.pid)
    other.write_text('other')
    c.say(QUESTION)
    assert c.say('/save %s' % (tmp_path / 'a')) == '(2 messages in %s)' % (tmp_path / 'a')
    assert other.read_text() == 'other'


def test_fsync_of_the_directory(chat, tmp_path, odd):
    """That of both names is the last thing before success is said: where it fails, that is said."""
    shim, log = tmp_path / 'shim.so', tmp_path / 'log'
    source = '''#define _GNU_SOURCE
        #include <errno.h>
        #include <fcntl.h>
        #include <stdio.h>
        #include <sys/stat.h>
        #include <unistd.h>
        int fsync(int fd) {
            struct stat info;
            fstat(fd, &info);
            FILE *f = fopen("%s", "a");
            fprintf(f, "%%s ", S_ISDIR(info.st_mode) ? "directory" : "file");
            fclose(f);
            return S_ISDIR(info.st_mode) ? (errno = EIO, -1) : 0;
        }''' % log
    subprocess.run(['cc', '-shared', '-fPIC', '-x', 'c', '-o', shim, '-'], input=source.encode(), check=True)
    c = chat(odd, *SMALL, env={'LD_PRELOAD': shim, 'ASAN_OPTIONS': 'verify_asan_link_order=0'})
    c.say(QUESTION)
    assert c.say('/save %s' % (tmp_path / 'a')) == 'gemma4: %s/: Input/output error' % tmp_path
    assert log.read_text() == 'file file directory '
    assert read_json(tmp_path / 'a')['messages'][0]['content'] == QUESTION


# ---------------------------------------------------------------------------------------------- one shot

DOCUMENT = 'The lamps are old. ' * 12           # longer than the window of the small checkpoints


def written(file):
    """Which file stands there, and when it was written."""
    now = file.stat()
    return now.st_ino, now.st_mtime_ns, now.st_size


def shot(model, *args, stdin='', status=0):
    """The answer of a greedy one-shot; how many tokens its prompt has, and how many of them it did not read; the rest of stderr."""
    done = run('-m', model, '--temp', 0, '-n', 20, '--ignore-eos', '--chunk', 5, '--stats', *args, stdin=stdin)
    assert done.returncode == status, done.stderr
    found = re.search(rb'prompt: (\d+) tokens(?: \((\d+) reused\))?.*\n', done.stderr)
    return done.stdout, int(found[1]), int(found[2] or 0), done.stderr.replace(found[0], b'').decode()


@pytest.mark.parametrize('options', [(), ('--exact',), ('--kv', 'fp8'), ('--device', 'plain')], ids=str)
@pytest.mark.parametrize('model', ['odd-bf16', 'dense'])
def test_document(tmp_path, model, options):
    """The second question about a document does not read it again, and gets the answer that it gets without --cache.  Another document
    replaces the first."""
    model, file = FIXTURES / model, tmp_path / 'c'
    ask = lambda question, document=DOCUMENT, cache=file: shot(model, *options, '--cache', cache, question, stdin=document)      # noqa: E731
    first, n, held, said = ask('How many?')
    assert (held, said) == (0, '') and stat.S_IMODE(file.stat().st_mode) == 0o600
    size = written(file)
    second, n, held, said = ask('Which colour have they, and why?')
    assert said == '' and n - 40 < held < n and written(file) == size
    assert second == ask('Which colour have they, and why?', cache=tmp_path / 'new')[0] != first
    assert ask('How many?')[0] == first and written(file) == size
    other = ask('How many?', 'No lamps. ' * 30)
    assert other[2] < 20 and written(file) != size
    assert ask('How many?', 'No lamps. ' * 30)[:2] == other[:2] and ask('Why?', 'No lamps. ' * 30)[2] > 50
    assert list(tmp_path.glob('*.tmp')) == []


def test_document_stands_first(odd, tmp_path):
    """With --cache the prompt is that of the text, a blank line and the question."""
    whole = shot(odd, '-p', DOCUMENT.strip() + '\n\nHow many?')
    assert shot(odd, '--cache', tmp_path / 'c', 'How many?', stdin=DOCUMENT.strip() + '\n')[1] == whole[1]
    assert shot(odd, '--cache', tmp_path / 'c', 'How many?', stdin=DOCUMENT.strip() + '\n\n')[2] > 50


def test_prompt_without_a_document(odd, tmp_path):
    """What is kept is the prompt; also with a system prompt, and with another question behind it."""
    call = ('--cache', tmp_path / 'c', '-s', DOCUMENT)
    _, n, held, _ = shot(odd, *call, 'How many?')
    assert held == 0 and shot(odd, *call, 'How many?')[1:3] == (n, n - 1)
    assert shot(odd, *call, 'Why?')[2] > n // 2


def test_picture_as_a_document(tmp_path):
    model = IMAGES / 'seeing'
    call = ('--cache', tmp_path / 'c', '--image-tokens', 70, '-i')
    _, n, held, _ = shot(model, *call, IMAGES / 'tall.png', 'What is it?')
    assert held == 0
    assert shot(model, *call, IMAGES / 'tall.png', 'Why?')[2] > n // 2
    assert shot(model, *call, IMAGES / 'rgb.png', 'Why?')[2] < 10
    assert shot(model, *call, IMAGES / 'rgb.png', 'What is it?')[2] > 10


def test_document_of_another_run(odd, tmp_path):
    """Another model or cache type: said, read anew, replaced.  A damaged file too.  A file that is no cache stays as it is."""
    file = tmp_path / 'c'
    call = ('--cache', file, 'How many?')
    shot(odd, *call, stdin=DOCUMENT)
    for model, options, why in ((FIXTURES / 'dense', (), 'another model'), (odd, ('--kv', 'fp8'), '--kv')):
        _, _, held, said = shot(model, *options, *call, stdin=DOCUMENT)
        assert held == 0 and why in said and said.count('\n') == 1 and str(file) in said
        assert shot(model, *options, *call, stdin=DOCUMENT)[2] > 50
        shot(odd, *call, stdin=DOCUMENT)
    file.write_bytes(file.read_bytes()[:-1])
    assert 'damaged' in shot(odd, *call, stdin=DOCUMENT)[3] and shot(odd, *call, stdin=DOCUMENT)[2] > 50
    for text in (b'A report.', b'gemma', b'\0' * 1000):
        file.write_bytes(text)
        assert str(file) in complaint(1, '-m', odd, *call, stdin=DOCUMENT) and file.read_bytes() == text
    file.write_bytes(b'')
    assert shot(odd, *call, stdin=DOCUMENT)[2:] == (0, '') and file.stat().st_size > 1000
    assert str(tmp_path) in complaint(1, '-m', odd, '--cache', tmp_path, 'How many?')


def test_document_that_cannot_be_kept(odd, tmp_path):
    """The answer comes all the same, and a line says that there is no cache."""
    answer, _, _, said = shot(odd, '--cache', tmp_path / 'none' / 'c', 'How many?', stdin=DOCUMENT)
    assert answer == shot(odd, '--cache', tmp_path / 'c', 'How many?', stdin=DOCUMENT)[0]
    assert str(tmp_path / 'none') in said and said.count('\n') == 1


def test_two_runs_with_one_document(start, odd, tmp_path):
    """Both answer, and the file is whole."""
    runs = [start('-m', odd, '-q', '--temp', 0, '-n', 5, '--cache', tmp_path / 'c', 'Why?') for _ in range(4)]
    for p in runs:
        p.stdin.write(DOCUMENT.encode())
        p.stdin.close()
    answers = {(p.stdout.read(), p.stderr.read(), p.wait()) for p in runs}
    assert len(answers) == 1 and answers.pop()[1:] == (b'', 0)
    assert shot(odd, '--cache', tmp_path / 'c', 'Why?', stdin=DOCUMENT)[2] > 50
    assert os.listdir(tmp_path) == ['c']


def test_conversation_over_several_calls(odd, tmp_path):
    """--load and --save: the conversation grows, its prompt is not read again, and the chat can go on with it."""
    file = tmp_path / 'talk'
    first = shot(odd, '-s', 'Be brief.', '--save', file, QUESTION)
    assert [m['role'] for m in read_json(file)['messages']] == ['system', 'user', 'assistant']
    _, n, held, _ = shot(odd, '--load', file, '--save', file, 'and?')
    assert held > first[1] - 10 and n > held
    messages = read_json(file)['messages']
    assert [m['content'] for m in messages[:2] + messages[3:4]] == ['Be brief.', QUESTION, 'and?'] and len(messages) == 5
    before = file.read_bytes()
    shot(odd, '--load', file, 'more?')
    assert file.read_bytes() == before
    assert str(tmp_path / 'none') in complaint(1, '-m', odd, '--load', tmp_path / 'none', 'and?')


def test_conversation_on_stdin(odd, tmp_path):
    """Has no cache beside it."""
    (tmp_path / '-.kv').write_text('x')
    done = run('-m', odd, '-n', 1, '--load', '-', 'and?', stdin='{"messages": []}', cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b'gemma4: warning: the answer was cut: -n 1\n')


def test_save_is_checked_before_the_answer(odd, tmp_path):
    (tmp_path / 'x.kv').mkdir()
    (tmp_path / 'loose').symlink_to(tmp_path / 'gone')
    for name, why in ('none/x', 'No such file'), ('.', 'Is a directory'), ('x', 'Is a directory'), ('loose', 'leads nowhere'):
        assert why in complaint(1, '-m', odd, '-n', 3, '--save', tmp_path / name, 'hello')
    assert sorted(os.listdir(tmp_path)) == ['loose', 'x.kv']


def test_save_for_a_reader_who_leaves(start, chatterbox, tmp_path):
    """The whole answer is saved, and the status is still that of a closed pipe."""
    p = start('-m', chatterbox, 'hello', '-n', 300, '--save', tmp_path / 'a', stdin=subprocess.DEVNULL)
    p.stdout.read(5)
    p.stdout.close()
    assert p.wait(180) == 141
    assert read_json(tmp_path / 'a')['messages'][1]['content'].count('The command is one') > 50


def test_broken_arguments_of_a_saved_conversation(chat, odd, tmp_path):
    """They are said once, when the file is read, and not with every answer."""
    call = {'id': '1', 'type': 'function', 'function': {'name': 'f', 'arguments': '{city:'}}
    file = write_json(tmp_path / 'talk', {'messages': [{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'tool_calls': [call]}]})
    says = 'messages[1].tool_calls[0].function.arguments: no JSON object'
    assert run('-m', odd, '-n', 1, '--load', file, '--save', tmp_path / 'new', 'and?').stderr.decode().count(says) == 1
    c = chat(odd, '-n', 1)
    assert says in c.say('/load %s' % file)
    assert says not in c.say('and?')


def test_tools_of_a_saved_conversation(chat, odd, tmp_path):
    """--load and /load take them, and --save keeps them; those of --tools take their place."""
    tool = lambda name: {'type': 'function', 'function': {'name': name, 'description': 'd'}}        # noqa: E731
    old = tmp_path / 'old'
    old.write_text(json.dumps({'tools': [tool('add')], 'max_tokens': 5, 'temperature': 0, 'messages': [{'role': 'user', 'content': 'a'}]}))
    done = run('-m', odd, '-q', '-n', 2, '--load', old, '--save', tmp_path / 'new', 'and?')
    assert done.returncode == 0 and read_json(tmp_path / 'new')['tools'] == [tool('add')]
    given = json.dumps([tool('other')])
    done = run('-m', odd, '-n', 2, '--ignore-eos', '--load', old, '--save', tmp_path / 'new', '--tools', given, 'and?')
    assert read_json(tmp_path / 'new')['tools'] == [tool('other')]
    assert done.stderr.decode() == 'gemma4: warning: %s: of a loaded conversation these have no effect: max_tokens, temperature\n' % old
    c = chat(odd, '-n', 1)
    c.say('/load %s' % old)
    assert 'add' in c.say('/tools')
    old.write_text('{"messages": []}')
    c.say('/load %s' % old)
    assert 'may call nothing' in c.say('/tools')
    old.write_text('{"messages": [], "tools": [{}]}')
    assert str(old) in c.say('/load %s' % old)
