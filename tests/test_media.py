"""Images and videos through the program, against transformers (tests/make_images.py): prompts, logits, answers; how a request
names a file; what is remembered; and files that are none."""
import base64
import json
import re
import shutil
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import pytest

from conftest import FIXTURES, answer, complaint, environment, ids_of, read_floats, read_json, read_line, run, write_json
from test_repl import PROMPT, chat  # noqa: F401 (fixture)

IMAGES = FIXTURES / 'images'
SEEING = IMAGES / 'seeing'
PROMPTS = read_json(IMAGES / 'cases.json')['prompts']
FFMPEG = shutil.which('ffmpeg')
needs_ffmpeg = pytest.mark.skipif(not FFMPEG, reason='ffmpeg is not installed')
EACH = [pytest.param(c, id=c['name'], marks=needs_ffmpeg if c['name'] == 'mp4' else ()) for c in PROMPTS]
EXACT = ('--exact', '-m', SEEING)


def prompt(name):
    return next(c for c in PROMPTS if c['name'] == name)


def part(url, kind='image_url'):
    return {'type': kind, kind: {'url': str(url)}}


def user(*content):
    return {'role': 'user', 'content': list(content)}


def ask(*messages, **fields):
    return json.dumps({'messages': list(messages), 'temperature': 0, 'max_tokens': 3, **fields})


@pytest.mark.parametrize('case', EACH)
def test_prompt(case):
    assert ids_of('render', '--ids', '-m', SEEING, *case['options'], stdin=json.dumps({'messages': case['messages']}), cwd=IMAGES) == case['ids']


def test_too_wide(tmp_path):
    """For the positions that the model has: the message names the file."""
    path = tmp_path / 'wide.ppm'
    path.write_bytes(b'P6 3000 2 255\n' + bytes(3000 * 2 * 3))
    assert '%s: a picture of 840 x 3 patches: ' % path in complaint(1, '-m', SEEING, '-i', path, 'What is it?')


# With --chunk 16 every picture is larger than a step.
@pytest.mark.parametrize('options', [(), ('--chunk', 16), ('-t', 1, '--chunk', 100)], ids=str)
@pytest.mark.parametrize('case', EACH)
def test_logits(case, options, tmp_path):
    request = write_json(tmp_path / 'request.json', {'messages': case['messages']})
    out = tmp_path / 'logits'
    answer('score', *EXACT, *case['options'], *options, '--request', request, '--top', 0, '--logits', out, cwd=IMAGES)
    logits, want = read_floats(out)[-519:], read_floats(IMAGES / 'ref.safetensors', case['name'] + '_logits_f32')
    far = max(abs(a - b) for a, b in zip(logits, want))
    assert len(want) == 519 and far <= 1e-3 * (max(want) - min(want))


@pytest.mark.parametrize('case', EACH)
def test_answer(case):
    request = {'messages': case['messages'], 'temperature': 0, 'max_tokens': len(case['greedy']), 'logprobs': True}
    got = json.loads(answer('--jsonl', *EXACT, *case['options'], stdin=json.dumps(request), cwd=IMAGES))
    said = b''.join(bytes(t['bytes']) for t in got['choices'][0]['logprobs']['content'])
    want = run('tokenize', '--decode', '-m', SEEING, stdin=' '.join(map(str, case['greedy']))).stdout
    assert said == want and got['usage']['prompt_tokens'] == len(case['ids'])


def test_options_put_images_before_the_text():
    case = prompt('one')
    got = ids_of(*EXACT, '--temp', 0, '-n', 12, '--print-ids', '--image-tokens', 70, '-i', 'rgb.png', 'What is this?', cwd=IMAGES)
    assert got == case['greedy']
    two = {'messages': [user(part('grey.png'), part('alpha.png'), {'type': 'text', 'text': 'Which?'})], 'temperature': 0, 'max_tokens': 5}
    want = json.loads(answer('--jsonl', *EXACT, '--image-tokens', 70, stdin=json.dumps(two), cwd=IMAGES))
    assert answer(*EXACT, '--temp', 0, '-n', 5, '-i', 'grey.png', '-i', 'alpha.png', '--image-tokens', 70, 'Which?',
                  cwd=IMAGES).rstrip('\n') == want['choices'][0]['message']['content'].rstrip('\n')


@pytest.mark.parametrize('option, name', [('-i', 'rgb.png'), ('--video', 'moving.gif')])
def test_stdin_is_the_picture(option, name, tmp_path):
    """It is no part of the question then; the conversation keeps it."""
    data = (IMAGES / name).read_bytes()
    got = answer(*EXACT, '--temp', 0, '-n', 4, option, '-', '--save', tmp_path / 'talk', 'What?', stdin=data)
    assert got == answer(*EXACT, '--temp', 0, '-n', 4, option, IMAGES / name, 'What?')
    url = read_json(tmp_path / 'talk')['messages'][0]['content'][0]['image_url' if option == '-i' else 'video_url']['url']
    assert base64.b64decode(url.removeprefix('data:;name=stdin;base64,'), validate=True) == data
    assert 'one file, not two' in complaint(1, *EXACT, '-i', '-', option, '-', 'What?', stdin=data)


def test_video_option():
    case = prompt('gif')
    assert ids_of(*EXACT, '--temp', 0, '-n', 12, '--print-ids', '--video', 'moving.gif', 'What happens?', cwd=IMAGES) == case['greedy']


@pytest.mark.parametrize('url', [
    'rgb.png', str(IMAGES / 'rgb.png'), 'file://' + str(IMAGES / 'rgb.png'), 'FILE://localhost' + str(IMAGES / 'rgb%2epng'),
    'data:image/png;base64,' + base64.b64encode((IMAGES / 'rgb.png').read_bytes()).decode(),
    'data:;base64,' + base64.urlsafe_b64encode((IMAGES / 'rgb.png').read_bytes()).decode().rstrip('=')], ids=lambda u: u[:12])
def test_urls(url):
    case = prompt('one')
    for value in ({'url': url, 'detail': 'low'}, url):
        request = {'messages': [user({'type': 'image_url', 'image_url': value}, {'type': 'text', 'text': 'What is this?'})]}
        assert ids_of('render', '--ids', '-m', SEEING, '--image-tokens', 70, stdin=json.dumps(request), cwd=IMAGES) == case['ids']


def test_video_in_a_data_url():
    url = 'data:image/gif;base64,' + base64.b64encode((IMAGES / 'moving.gif').read_bytes()).decode()
    request = {'messages': [user(part(url, 'video_url'), {'type': 'text', 'text': 'What happens?'})]}
    assert ids_of('render', '--ids', '-m', SEEING, stdin=json.dumps(request)) == prompt('gif')['ids']


def test_each_picture_counts():
    lines = '\n'.join(ask(user(part(name), {'type': 'text', 'text': 'What?'}), logprobs=True) for name in ('rgb.png', 'packed.tga', 'rgb.png'))
    a, b, c = (json.loads(line) for line in answer('--jsonl', *EXACT, '--image-tokens', 70, stdin=lines, cwd=IMAGES).splitlines())
    first = [r['choices'][0]['logprobs']['content'][0]['logprob'] for r in (a, b, c)]
    assert first[0] == first[2] != first[1]


def test_a_conversation_evaluates_no_picture_twice():
    picture, text = part('rgb.png'), {'type': 'text', 'text': 'What?'}
    turns = [user(picture, text), {'role': 'assistant', 'content': 'A boat.'}, user(text)]
    other = [user(part('alpha.png'), text), *turns[1:]]
    lines = '\n'.join([ask(*turns[:1]), ask(*turns), ask(*other), ask(*turns)])
    cached = [json.loads(line)['usage']['prompt_tokens_details']['cached_tokens']
              for line in answer('--jsonl', *EXACT, '--image-tokens', 70, stdin=lines, cwd=IMAGES).splitlines()]
    begin = len(ids_of('tokenize', '-m', SEEING, stdin='<bos><|turn>user\n<|image>'))
    assert cached[0] == 0 and cached[1] > begin + 60
    assert cached[2:] == [begin, begin]


def test_a_part_without_a_file():
    bare = ask(user({'type': 'image'}))
    assert '<|turn>user\n<|image|><turn|>' in answer('render', '-m', SEEING, stdin=bare)
    error = json.loads(run('--jsonl', '-m', SEEING, stdin=bare).stdout)['error']['message']
    assert 'messages[0].content[0]' in error and 'image_url' in error


PHOTO = (IMAGES / 'photo.jpg').read_bytes()


def more_tables(*tables):
    """The photo with a segment of Huffman tables in front of its own."""
    at, segment = PHOTO.index(b'\xff\xc4'), b''.join(tables)
    return PHOTO[:at] + b'\xff\xc4' + (len(segment) + 2).to_bytes(2, 'big') + segment + PHOTO[at:]


def table(number, counts, values):
    """counts: {length: how many codes}."""
    return bytes([number] + [counts.get(n, 0) for n in range(1, 17)]) + values


# 302 codes, where 256 are possible; the same in the values of another table, to be found when its 200 becomes 0: the length of what
# looks like a segment, from the last values of the first table on, and has too many codes, too.
MANY = table(3, {15: 47, 16: 255}, b'')
MANY_CODES = more_tables(MANY + bytes(302))
HIDDEN_CODES = more_tables(table(0, {8: 4}, b'\1\2\xff\xc4'), table(1, {1: 200, 8: 41}, b'\xff' * 41 + MANY + bytes(200 - len(MANY))),
                           bytes(17 * 90))


@pytest.mark.parametrize('name, content, says', [
    ('missing.png', None, 'No such file'), ('empty.png', b'', 'not an image'), ('text.jpg', b'Once upon a time', 'not an image'),
    ('short.png', (IMAGES / 'rgb.png').read_bytes()[:2000], 'truncated'),
    ('short.bmp', b'BM' + struct.pack('<IHHIIiiHHIIiiII', 3000, 0, 0, 54, 40, 30, 30, 1, 24, 0, 2760, 1, 1, 0, 0) + bytes(99), 'truncated'),
    ('codes.jpg', MANY_CODES, '(Corrupt JPEG)'), ('hidden.jpg', HIDDEN_CODES, '(Corrupt JPEG)'),
    ('huge.ppm', b'P6 90000 90000 255\n', 'more than'), ('zero.ppm', b'P6 0 0 255\n', 'image'),
], ids=lambda v: v if isinstance(v, str) and '.' in v else '')
def test_files_that_are_no_images(name, content, says, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    text = complaint(1, *EXACT, '-i', tmp_path / name, 'What?')
    assert str(tmp_path / name) in text and says in text
    line = run('--jsonl', *EXACT, stdin=ask(user(part(tmp_path / name))) + '\n' + ask(user({'type': 'text', 'text': 'Hi'})))
    bad, good = (json.loads(x) for x in line.stdout.splitlines())
    assert name in bad['error']['message'] and 'choices' in good and line.returncode == 1


def test_a_saved_picture_is_found_from_any_directory(tmp_path):
    (tmp_path / 'here').mkdir()
    shutil.copy(IMAGES / 'rgb.png', tmp_path / 'here' / 'a.png')
    answer(*EXACT, '-n', 2, '-i', 'a.png', '--save', '../talk', 'What?', cwd=tmp_path / 'here')
    first = read_json(tmp_path / 'talk')['messages'][0]['content'][0]
    assert first == part(tmp_path / 'here' / 'a.png')
    answer(*EXACT, '-n', 2, '--load', 'talk', 'And?', cwd=tmp_path)


# A sample of a PNM is a fraction of the largest value that the header names, and has two bytes, the high one first, above 255.
def pnm(magic, largest, samples, comment=b''):
    size = 2 if largest > 255 else 1
    return b'%s\n%s12 10\n%d\n' % (magic, comment, largest) + b''.join((s * largest // 51).to_bytes(size, 'big') for s in samples)


@pytest.mark.parametrize('magic, channels', [(b'P6', 3), (b'P5', 1)], ids=['ppm', 'pgm'])
def test_the_largest_value_of_a_pnm_is_white(magic, channels, tmp_path):
    samples = [i * 7 % 52 for i in range(12 * 10 * channels)]
    logits = {}
    for largest in 51, 255, 4080, 65535:
        (tmp_path / 'a.pnm').write_bytes(pnm(magic, largest, samples, comment=b'# 1 2 3\n'))
        request = write_json(tmp_path / 'request.json', {'messages': [user(part(tmp_path / 'a.pnm'))]})
        answer('score', *EXACT, '--request', request, '--top', 0, '--logits', tmp_path / 'logits')
        logits[largest] = (tmp_path / 'logits').read_bytes()
    assert len(set(logits.values())) == 1
    (tmp_path / 'a.pnm').write_bytes(pnm(magic, 65535, samples)[:-1])
    assert 'truncated' in complaint(1, *EXACT, '-i', tmp_path / 'a.pnm', 'What?')
    (tmp_path / 'a.pnm').write_bytes(pnm(magic, 0, samples))
    assert 'a largest value of 0' in complaint(1, *EXACT, '-i', tmp_path / 'a.pnm', 'What?')


@pytest.mark.parametrize('url, says', [
    ('https://example.org/a.png', 'only file://'), ('-', 'No such file'),
    ('data:image/png,abc', 'base64'), ('data:image/png;base64,a*b', "'*'"),
    ('data:image/png;base64,', 'not an image'), ('', 'without a path'), ('/', 'directory')], ids=str)
def test_urls_that_lead_nowhere(url, says):
    done = run('--jsonl', *EXACT, stdin=ask(user(part(url))))
    assert done.returncode == 1 and says in json.loads(done.stdout)['error']['message']


def test_a_picture_wider_than_the_tower(odd):
    assert 'positions for 24' in complaint(1, '-m', odd, '-i', IMAGES / 'wide.png', 'What?')


def test_video_without_ffmpeg():
    assert 'ffmpeg' in complaint(1, *EXACT, '--video', IMAGES / 'rgb.png', 'What?', env=environment(PATH='/nonexistent'))


@needs_ffmpeg
def test_video_that_is_none(tmp_path):
    (tmp_path / 'a.mp4').write_bytes(b'This is no video')
    assert 'ffmpeg' in complaint(1, *EXACT, '--video', tmp_path / 'a.mp4', 'What?')


# Says of clip.mp4 what ffmpeg says of it; {spoil} can spoil that.  Each call's arguments go to a file of their own.
FALSE_FFMPEG = """#!{python}
import glob, os, re, sys
args = ' '.join(sys.argv[1:])
open('{folder}/call%d' % len(glob.glob('{folder}/call*')), 'w').write(args)
video = open(args.split(' -i file:')[1].split()[0], 'rb').read() == open('{clip}', 'rb').read()
packets = ['0, %d, %d, 1, 100, 0x0' % (i, i) for i in range(40)] if video and not sys.stdin.read() else []
sizes = [(64, 48) for n in re.findall(r'eq\\(n', args)]
rest = b''
{spoil}
if 'framecrc' in args:
    print('#software: Lavf', '#tb 0: 1/8', *packets, sep='\\n')
else:
    frame = b'P7\\nWIDTH %d\\nHEIGHT %d\\nDEPTH 3\\nMAXVAL 255\\nTUPLTYPE RGB\\nENDHDR\\n'
    sys.stdout.buffer.write(b''.join(frame % (w, h) + bytes(min(w * h * 3, 1 << 16)) for w, h in sizes) + rest)
"""


@pytest.fixture
def false_ffmpeg(tmp_path):
    """false_ffmpeg(spoil): the environment in which that is the only ffmpeg, spoilt by a line of Python; calls are in tmp_path/call*."""
    def make(spoil=''):
        program = tmp_path / 'ffmpeg'
        program.write_text(FALSE_FFMPEG.format(python=sys.executable, folder=tmp_path, clip=IMAGES / 'clip.mp4', spoil=spoil))
        program.chmod(0o700)
        return environment(PATH=tmp_path)
    return make


def test_what_ffmpeg_is_asked(false_ffmpeg, tmp_path):
    """For the list of frames and then for those that are taken; their times are those of the reference."""
    case = prompt('mp4')
    assert ids_of('render', '--ids', '-m', SEEING, *case['options'], stdin=json.dumps({'messages': case['messages']}), cwd=IMAGES, env=false_ffmpeg()) == case['ids']
    first, second = [(tmp_path / ('call%d' % i)).read_text() for i in (0, 1)]
    assert '-protocol_whitelist file -i file:/dev/fd/' in first and first.endswith('-map 0:V -c copy -f framecrc -')
    assert '-map 0:V:0 -vf select=eq(n\\,0)+eq(n\\,8)+eq(n\\,16)+eq(n\\,24)+eq(n\\,32),' in second
    assert '-pix_fmt rgb24' in second and '-vsync' not in second and '-fps_mode' not in second


@pytest.mark.parametrize('spoil, says', [
    ('packets = []', 'finds no video'), ('sizes = []', 'gives no frames'),
    ('rest = b"P7 WIDTH 64 HEIGHT 48 DEPTH 3 MAXVAL 255 TUPLTYPE RGB ENDHDR\\n..."; sizes = sizes[:2]', 'stopped within a frame'),
    ('sys.exit(255)', 'ffmpeg was interrupted'), ('os.kill(os.getpid(), 9)', 'ffmpeg was interrupted'),
    ('sizes = [(40000, 40000)]', 'frames of 40000 x 40000'), ('sizes = [(0, 48)]', 'frames of 0 x 48')], ids=str)
def test_ffmpeg_that_fails(false_ffmpeg, spoil, says):
    text = complaint(1, *EXACT, '--video', IMAGES / 'clip.mp4', 'What?', env=false_ffmpeg(spoil))
    assert 'clip.mp4: ' in text and says in text


def test_ffmpeg_that_cannot_be_run(tmp_path):
    (tmp_path / 'ffmpeg').write_text('')
    text = complaint(1, *EXACT, '--video', IMAGES / 'clip.mp4', 'What?', env=environment(PATH=tmp_path))
    assert text.endswith('ffmpeg: Permission denied\n')


# What framecrc says where times are missing or frames last differently: (lines, the times of four frames).
LISTS = {
    'odd unit': (['#tb 0: 1001/30000'] + ['0, %d, %d, 1, 9, 0x0' % (i, i) for i in range(4)], [0, 0, 0, 0]),
    'late': (['#tb 0: 1/1'] + ['0, %d, %d, 2, 9, 0x0' % (i, i) for i in (60, 62, 64, 66)], [0, 2, 4, 6]),
    'last has no length': (['#tb 0: 1/1'] + ['0, %d, %d, 0, 9, 0x0' % (i, i) for i in (0, 5, 10, 15)], [0, 5, 10, 15]),
    'differently long': (['#tb 0: 1/1'] + ['0, %d, %d, %d, 9, 0x0' % (i, i, n) for i, n in ((0, 1), (1, 9), (10, 20), (30, 10))], [0, 10, 20, 30]),
    'reordered': (['#tb 0: 1/1'] + ['0, %d, %d, 3, 9, 0x0' % (i, t) for i, t in ((-3, 0), (0, 9), (3, 3), (6, 6))], [0, 3, 6, 9]),
    'decoding times only': (['#tb 0: 1/1'] + ['0, %d, NOPTS, 4, 9, 0x0' % i for i in (0, 4, 8, 12)], [0, 4, 8, 12]),
    'no times but the first, as ffmpeg 5 writes them': (['#tb 0: 1/1', '0, 0, 0, 3, 9, 0x0'] +
                                                        ['0, %d, %d, 3, 9, 0x0' % (-2**63, -2**63)] * 3, [0, 0, 0, 0]),
    'no times': (['#tb 0: 1/1'] + ['0, NOPTS, NOPTS, 0, 9, 0x0'] * 4, [0, 0, 0, 0]),
    'the second stream': (['#tb 0: 1/1', '#dimensions 0: 900x900', '#tb 1: 1/2', '#dimensions 1: 64x48', '0, 0, 0, 0, 9, 0x0'] +
                          ['1, %d, %d, 8, 9, 0x0' % (i, i) for i in (0, 8, 16, 24)], [0, 4, 8, 12]),
    'the larger stream': (['#tb 0: 1/1', '#dimensions 0: 64x48', '#tb 1: 1/1', '#dimensions 1: 128x96'] +
                          ['%d, %d, %d, 7, 9, 0x0' % (k, i, i) for i in (0, 7, 14, 21) for k in (0, 1)], [0, 7, 14, 21]),
}


def spoken_times(path, env):
    """The times that the prompt says of a video's frames, in seconds."""
    request = {'messages': [user(part(path, 'video_url'))]}
    text = answer('render', '-m', SEEING, stdin=json.dumps(request), env=env)
    return [60 * int(m) + int(s) for m, s in re.findall(r'(\d\d):(\d\d) <\|image>', text)]


@pytest.mark.parametrize('name', LISTS)
def test_times_of_frames(false_ffmpeg, tmp_path, name):
    lines, times = LISTS[name]
    env = false_ffmpeg('packets = %r; sizes = [(64, 48)] * 4' % lines)
    assert spoken_times(IMAGES / 'clip.mp4', env) == times
    assert '-map 0:V:%d ' % name.endswith('stream') in (tmp_path / 'call1').read_text()


def test_ffmpeg_ends_with_the_program(false_ffmpeg, start, tmp_path):
    """However the program ends: nothing of it stays behind."""
    spoil = "open('%s/pid', 'w').write(str(os.getpid())); import signal; signal.pause()" % tmp_path
    p = start(*EXACT, '--video', IMAGES / 'clip.mp4', 'What?', env=false_ffmpeg(spoil), stdin=subprocess.DEVNULL)
    while not (tmp_path / 'pid').exists() or not (tmp_path / 'pid').read_text():
        assert p.poll() is None
    child = int((tmp_path / 'pid').read_text())
    p.kill()
    p.wait()
    while Path('/proc/%d/stat' % child).exists() and ') Z ' not in Path('/proc/%d/stat' % child).read_text():
        pass


def test_resize_while_ffmpeg_lists_the_frames(false_ffmpeg, chat, tmp_path):
    """The signal ends no read of the list: the last frames are among those that are taken."""
    half = tmp_path / 'half'
    spoil = ("if 'framecrc' in args: print('#tb 0: 1/8', *packets[:20], sep='\\n', flush=True); packets = packets[20:]; "
             "os.mkfifo('%s'); open('%s').read()" % (half, half))
    c = chat(SEEING, '--exact', env=false_ffmpeg(spoil))
    c.child.sendline('/video %s' % (IMAGES / 'clip.mp4'))
    while not half.exists():
        assert c.child.isalive()
    time.sleep(.1)                      # now the program waits for more; otherwise the test shows nothing
    c.child.setwinsize(30, 150)
    time.sleep(.1)
    half.write_text('')                 # lets ffmpeg go on
    c.child.expect_exact('goes with the next question')
    c.child.expect(PROMPT)
    c.child.sendline('/quit')
    assert c.end() == 0
    assert 'eq(n\\,38)' in (tmp_path / 'call1').read_text()


# ---------------------------------------------------------------------------------------------- videos that ffmpeg makes here

def ffmpeg(*args, **kwargs):
    done = subprocess.run(['ffmpeg', '-nostdin', '-v', 'error', '-y', *map(str, args)], capture_output=True, **kwargs)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


FILM = ('-f', 'lavfi', '-i', 'testsrc=size=64x48:rate=8:duration=5')


def logits_of(path, tmp_path, *options):
    request = write_json(tmp_path / 'request.json', {'messages': [user(part(path, 'video_url'))]})
    answer('score', *EXACT, '--video-frames', 5, *options, '--request', request, '--top', 0, '--logits', tmp_path / 'logits')
    return read_floats(tmp_path / 'logits')[-519:]


def are_alike(a, b, most):
    return max(abs(x - y) for x, y in zip(a, b)) <= most * (max(b) - min(b))


@pytest.fixture(scope='module')
def film(tmp_path_factory):
    """A film of 40 frames that loses nothing, and the logits behind it."""
    folder = tmp_path_factory.mktemp('film')
    ffmpeg(*FILM, '-c:v', 'ffv1', '-pix_fmt', 'yuv420p', folder / 'film.mkv')
    return folder / 'film.mkv', logits_of(folder / 'film.mkv', folder)


SAME_FILM = {                           # name: what makes it of the film, without a loss that counts
    '10 bits': ('-c:v', 'ffv1', '-pix_fmt', 'yuv420p10le', 'x.mkv'),
    '12 bits': ('-c:v', 'ffv1', '-pix_fmt', 'yuv444p12le', 'x.mkv'),
    'alpha': ('-c:v', 'ffv1', '-pix_fmt', 'yuva420p', 'x.mkv'),
    'a minus in front': ('-c', 'copy', './-x.mkv'),
    'a colon and a percent sign': ('-c', 'copy', 'file:a:%03d b?.mkv'),
    'begins late': ('-c', 'copy', '-output_ts_offset', '100', 'x.mkv'),
    'an odd unit of time': ('-c', 'copy', '-video_track_timescale', '90001', '-strict', '-2', 'x.mov'),
}


@needs_ffmpeg
@pytest.mark.parametrize('name', SAME_FILM)
def test_same_film(film, tmp_path, name):
    path, want = film
    *options, out = SAME_FILM[name]
    ffmpeg('-i', path, *options, out, cwd=tmp_path)
    out = tmp_path / out.removeprefix('file:')
    assert are_alike(logits_of(out, tmp_path), want, 0.05)
    assert spoken_times(out, None) == [i * 5 // 32 for i in range(32)]


@needs_ffmpeg
def test_cover_picture_first(film, tmp_path):
    path, want = film
    ffmpeg('-f', 'lavfi', '-i', 'color=red:size=300x300', '-frames:v', 1, tmp_path / 'cover.png')
    ffmpeg('-i', tmp_path / 'cover.png', '-i', path, '-map', 0, '-map', 1, '-c', 'copy', tmp_path / 'first.mkv')
    assert are_alike(logits_of(tmp_path / 'first.mkv', tmp_path), want, 1e-6)
    ffmpeg('-f', 'lavfi', '-i', 'sine=duration=1', '-i', tmp_path / 'cover.png', '-map', 0, '-map', 1, '-c:v', 'copy', '-disposition:v:0', 'attached_pic',
           tmp_path / 'song.m4a')
    assert 'finds no video' in complaint(1, *EXACT, '--video', tmp_path / 'song.m4a', 'What?')


@needs_ffmpeg
def test_rotated_film(film, tmp_path):
    """As a player shows it."""
    path, _ = film
    ffmpeg('-i', path, '-c:v', 'mjpeg', '-q:v', 2, tmp_path / 'x.mov')
    data = (tmp_path / 'x.mov').read_bytes()
    upright = struct.pack('>9i', 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    at = data.index(upright, data.index(b'tkhd'))
    turned = struct.pack('>9i', 0, 1 << 16, 0, -1 << 16, 0, 0, 48 << 16, 0, 1 << 30)
    (tmp_path / 'turned.mov').write_bytes(data[:at] + turned + data[at + 36:])
    ffmpeg('-i', tmp_path / 'x.mov', '-vf', 'transpose=1', '-c:v', 'ffv1', tmp_path / 'want.mkv')
    want = logits_of(tmp_path / 'want.mkv', tmp_path)
    assert are_alike(logits_of(tmp_path / 'turned.mov', tmp_path), want, 0.05)
    assert not are_alike(logits_of(tmp_path / 'x.mov', tmp_path), want, 0.05)


@needs_ffmpeg
def test_frames_that_last_differently(film, tmp_path):
    """The frames count, not how long each is shown: none is dropped, and none is shown twice.  Both films are over within a second, so
    that the prompt says the same times."""
    passes = '-vsync' if b'-vsync' in ffmpeg('-h', 'full') else '-fps_mode'
    for name, times in (('even', 'N/100'), ('uneven', 'if(lt(N,20),N/1000,N/100)')):
        ffmpeg('-i', film[0], '-vf', "setpts='%s/TB'" % times, passes, 'passthrough', '-c:v', 'ffv1', tmp_path / (name + '.mkv'))
    want = logits_of(tmp_path / 'even.mkv', tmp_path)
    assert are_alike(logits_of(tmp_path / 'uneven.mkv', tmp_path), want, 1e-6)


@needs_ffmpeg
def test_one_frame(film, tmp_path):
    ffmpeg('-i', film[0], '-frames:v', 1, '-c:v', 'ffv1', tmp_path / 'x.mkv')
    assert spoken_times(tmp_path / 'x.mkv', None) == [0]


@needs_ffmpeg
def test_truncated_film(film, tmp_path):
    """What there is of it counts, and a line says that it is not all."""
    for name, options in (('x.mkv', ()), ('x.avi', ('-c:v', 'mpeg4')), ('x.mp4', ('-c:v', 'mpeg4', '-movflags', 'faststart')), ('x.gif', ())):
        ffmpeg('-i', film[0], *options, tmp_path / name)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[:len(data) * 2 // 3])
        done = run('render', '-m', SEEING, stdin=json.dumps({'messages': [user(part(tmp_path / name, 'video_url'))]}))
        assert done.stderr.decode() == 'gemma4: warning: %s: the file is damaged: part of the video may be missing\n' % (tmp_path / name)
        assert 15 < done.stdout.count(b'<|image>') < 32
    ffmpeg('-i', film[0], '-c:v', 'mpeg4', tmp_path / 'y.mp4')
    data = (tmp_path / 'y.mp4').read_bytes()
    (tmp_path / 'y.mp4').write_bytes(data[:len(data) * 2 // 3])
    assert 'y.mp4: an MP4 or QuickTime video: ffmpeg finds no video in it (it is damaged' in complaint(1, *EXACT, '--video', tmp_path / 'y.mp4', 'What?')


def test_hdr_is_said(false_ffmpeg):
    line = "sys.stderr.write('[info]   Stream #0:0: Video: hevc (Main 10), yuv420p10le(tv, bt2020nc/bt2020/%s), 64x48\\n')"
    request = json.dumps({'messages': [user(part(IMAGES / 'clip.mp4', 'video_url'))]})
    for curve, is_said in (('smpte2084', True), ('arib-std-b67', True), ('bt709', False)):
        done = run('render', '-m', SEEING, stdin=request, env=false_ffmpeg(line % curve))
        assert done.returncode == 0 and (b'HDR is not mapped' in done.stderr) == is_said


@needs_ffmpeg
def test_film_larger_than_the_limit_of_text(film, tmp_path):
    """Nothing of it is read into memory; the rest of the file is a hole."""
    ffmpeg('-i', film[0], '-c', 'copy', tmp_path / 'x.mov')
    size = (tmp_path / 'x.mov').stat().st_size
    with open(tmp_path / 'x.mov', 'r+b') as f:
        f.seek(size)
        f.write(struct.pack('>I4s', 100 << 20, b'free'))
        f.truncate(size + (100 << 20))
    assert are_alike(logits_of(tmp_path / 'x.mov', tmp_path), film[1], 1e-6)
    assert 'more than 64 MB' in complaint(1, *EXACT, '-i', tmp_path / 'x.mov', 'What?')


def test_changed_film_is_read_anew(false_ffmpeg, tmp_path, start):
    """The store knows a file by what tells its contents apart; a conversation asks for it with each turn."""
    film = tmp_path / 'film.mp4'
    film.write_bytes((IMAGES / 'clip.mp4').read_bytes())
    p = start('--jsonl', *EXACT, env=false_ffmpeg())
    lines = []
    for _ in range(2):
        p.stdin.write(ask(user(part(film, 'video_url'))).encode() + b'\n')
        lines.append(json.loads(read_line(p.stdout)))
    film.write_bytes(b'This is no video')
    p.stdin.write(ask(user(part(film, 'video_url'))).encode() + b'\n')
    assert 'finds no video' in json.loads(read_line(p.stdout))['error']['message']
    assert lines[0]['choices'][0]['message'] == lines[1]['choices'][0]['message']
    assert len(list(tmp_path.glob('call*'))) == 3


# ---------------------------------------------------------------------------------------------- pictures that stb_image does not read

W, H = 64, 48
RGBA = bytes((x * 3 + y, x * y // 12, 255 - x * 2, 255 - (x + y))[c] & 255 for y in range(H) for x in range(W) for c in range(4))


def chunk(name, data):
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))


def png(*more):
    """RGBA as a PNG, with more chunks."""
    rows = b''.join(b'\0' + RGBA[y * W * 4:(y + 1) * W * 4] for y in range(H))
    return b''.join([b'\x89PNG\r\n\x1a\n', chunk(b'IHDR', struct.pack('>IIBBBBB', W, H, 8, 6, 0, 0, 0)), *more,
                     chunk(b'IDAT', zlib.compress(rows)), chunk(b'IEND', b'')])


def exif(turn, order='<'):
    return (b'II*\0' if order == '<' else b'MM\0*') + struct.pack(order + 'IHHHIHHI', 8, 1, 0x112, 3, 1, turn, 0, 0)


def xmp(turn):
    return b'<x:xmpmeta><rdf:Description tiff:Orientation="%d"/></x:xmpmeta>' % turn


def webp(data, *chunks, flags=0x1c):
    """A WebP with these chunks behind its picture, and the header that announces them."""
    body = data[12:] if data[12:16] != b'VP8X' else data[30:]
    head = b'VP8X' + struct.pack('<IB3x', 10, flags) + (W - 1).to_bytes(3, 'little') + (H - 1).to_bytes(3, 'little')
    body = b'WEBP' + head + body + b''.join(n + struct.pack('<I', len(d)) + d + b'\0' * (len(d) % 2) for n, d in chunks)
    return b'RIFF' + struct.pack('<I', len(body)) + body


def tiff(turn):
    """An uncompressed TIFF of the colours of RGBA, turned."""
    pixels = bytes(v for i, v in enumerate(RGBA) if i % 4 != 3)
    tags = [(256, 3, 1, W), (257, 3, 1, H), (258, 3, 3, 8 + 2 + 11 * 12 + 4), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 200), (274, 3, 1, turn),
            (277, 3, 1, 3), (278, 3, 1, H), (279, 4, 1, len(pixels)), (284, 3, 1, 1)]
    head = b'II*\0' + struct.pack('<IH', 8, len(tags)) + b''.join(struct.pack('<HHII', *t) for t in tags) + struct.pack('<I3H', 0, 8, 8, 8)
    return head.ljust(200, b'\0') + pixels


def seen(path, tmp_path, *options, **kwargs):
    """The logits behind a picture."""
    request = write_json(tmp_path / 'request.json', {'messages': [user(part(path))]})
    answer('score', *EXACT, *options, '--image-tokens', 70, '--request', request, '--top', 0, '--logits', tmp_path / 'logits', **kwargs)
    return list(read_floats(tmp_path / 'logits')[-519:])


def is_seen_as(data, want, tmp_path, **kwargs):
    (tmp_path / 'a').write_bytes(data)
    (tmp_path / 'b').write_bytes(want)
    return seen(tmp_path / 'a', tmp_path, **kwargs) == seen(tmp_path / 'b', tmp_path)


@pytest.mark.parametrize('turn', range(1, 9))
def test_orientation_in_png_and_xmp(tmp_path, turn):
    want = png(chunk(b'eXIf', exif(turn)))
    assert is_seen_as(png(chunk(b'eXIf', exif(turn, '>'))), want, tmp_path)
    text = b'XML:com.adobe.xmp\0\0\0\0\0'
    assert is_seen_as(png(chunk(b'iTXt', text + xmp(turn))), want, tmp_path)
    assert is_seen_as(png(chunk(b'iTXt', text + b'<tiff:Orientation>%d</tiff:Orientation>' % turn)), want, tmp_path)
    assert is_seen_as(png(chunk(b'iTXt', text + xmp(9 - turn)), chunk(b'eXIf', exif(turn))), want, tmp_path), 'EXIF comes first'


def test_orientation_of_jpeg_in_xmp(tmp_path):
    segment = lambda data, fill=b'': PHOTO[:2] + fill + b'\xff\xe1' + struct.pack('>H', len(data) + 2) + data + PHOTO[2:]
    photo, exif_photo = segment(b'http://ns.adobe.com/xap/1.0/\0' + xmp(6)), segment(b'Exif\0\0' + exif(6))
    assert is_seen_as(photo, exif_photo, tmp_path) and not is_seen_as(photo, PHOTO, tmp_path)
    assert is_seen_as(segment(b'Exif\0\0' + exif(6), b'\xff\xff'), exif_photo, tmp_path), 'bytes FF may stand in front of a segment'


KNOWN = {
    b'RIFF\x08\0\0\0WEBPVP8 ': 'a WebP', b'\0\0\0\x18ftypheic\0\0\0\0': 'a HEIC', b'\0\0\0\x18ftypmif1\0\0\0\0mif1heic': 'a HEIC',
    b'\0\0\0\x18ftypavif\0\0\0\0': 'an AVIF', b'\0\0\0\x18ftypmif1\0\0\0\0mif1avif': 'an AVIF', b'II*\0\x08\0\0\0\0\0\0\0': 'a TIFF',
    b'MM\0*\0\0\0\x08\0\0\0\0': 'a TIFF', b'\xff\x0a' + bytes(20): 'a JPEG XL', b'\0\0\0\x0cJXL \r\n\x87\n': 'a JPEG XL',
    b'\0\0\0\x0cjP  \r\n\x87\n': 'a JPEG 2000', b'<svg xmlns="http://www.w3.org/2000/svg"/>': 'an SVG',
    b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg/>': 'an SVG', b'8BPS\0\1' + bytes(20): 'a PSD',
}


@pytest.mark.parametrize('start_of_file', KNOWN, ids=lambda s: KNOWN[s])
def test_format_is_named_where_ffmpeg_is_missing_or_fails(false_ffmpeg, tmp_path, start_of_file):
    (tmp_path / 'x').write_bytes(start_of_file)
    text = complaint(1, *EXACT, '-i', tmp_path / 'x', 'What?', env=environment(PATH='/nonexistent'))
    assert '%s/x: %s: ffmpeg is not installed (apt install ffmpeg); ' % (tmp_path, KNOWN[start_of_file]) in text and ' makes a PNG of it' in text
    text = complaint(1, *EXACT, '-i', tmp_path / 'x', 'What?', env=false_ffmpeg('sys.exit(1)'))
    assert '%s: this ffmpeg does not read it; ' % KNOWN[start_of_file] in text


@pytest.mark.parametrize('content, says', [
    (b'\0\0\0\x18ftypisom' + bytes(8), 'video, not an image: --video takes it'), (b'%PDF-1.4 ' + bytes(9), 'a PDF, not an image'),
    (b'RIFF\x90\0\0\0WEBPVP8 ', 'truncated'), (b'ID3' + bytes(20), 'a recording of sound, not an image')], ids=lambda v: str(v)[-12:])
def test_what_is_no_picture(tmp_path, content, says):
    (tmp_path / 'x').write_bytes(content)
    assert says in complaint(1, *EXACT, '-i', tmp_path / 'x', 'What?')


def gives_rgba(tmp_path):
    """What has a false ffmpeg give RGBA."""
    (tmp_path / 'rgba').write_bytes(b'P7\nWIDTH %d\nHEIGHT %d\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n' % (W, H) + RGBA)
    return "sys.stdout.buffer.write(open('%s/rgba', 'rb').read()); sys.stdout.flush(); os._exit(0)" % tmp_path


def box(name, data):
    return struct.pack('>I', 8 + len(data)) + name + data


@pytest.mark.parametrize('boxes, turn', [((), 1), ((box(b'irot', b'\1'),), 8), ((box(b'irot', b'\2'),), 3), ((box(b'irot', b'\3'),), 6),
                                         ((box(b'imir', b'\0'),), 4), ((box(b'imir', b'\1'),), 2), ((box(b'irot', b'\1'), box(b'imir', b'\0')), 5),
                                         ((box(b'irot', b'\1'), box(b'imir', b'\1')), 7)], ids=str)
def test_orientation_of_heic(false_ffmpeg, tmp_path, boxes, turn):
    """Its own properties count, not what its EXIF says, and ffmpeg does not turn it."""
    size = box(b'ispe', struct.pack('>III', 0, W, H))
    heic = box(b'ftyp', b'heic' + bytes(4)) + size + b''.join(boxes) + exif(6)
    assert is_seen_as(heic, png(chunk(b'eXIf', exif(turn))), tmp_path, env=false_ffmpeg(gives_rgba(tmp_path)))
    assert '-noautorotate' in (tmp_path / 'call0').read_text()


def test_tiles_are_not_taken_for_the_picture(false_ffmpeg, tmp_path):
    sizes = b''.join(box(b'ispe', struct.pack('>III', 0, w, h)) for w, h in ((W, H), (W * 2, H * 3)))
    (tmp_path / 'x').write_bytes(box(b'ftyp', b'heic' + bytes(4)) + sizes)
    text = complaint(1, *EXACT, '-i', tmp_path / 'x', 'What?', env=false_ffmpeg(gives_rgba(tmp_path)))
    assert 'a HEIC: it is made of tiles, which this ffmpeg does not put together; heif-convert FILE out.png makes a PNG of it' in text


@pytest.mark.parametrize('turned', [False, True])
def test_tiles_that_ffmpeg_puts_together(false_ffmpeg, tmp_path, turned):
    """As ffmpeg 8 does where no stream is chosen; it then turns the picture, too."""
    spoil = gives_rgba(tmp_path)
    sizes = b''.join(box(b'ispe', struct.pack('>III', 0, *s)) for s in ((W // 2, H // 2), (H, W) if turned else (W, H)))
    heic = box(b'ftyp', b'heic' + bytes(4)) + sizes + box(b'irot', b'\1')
    tile = "if '-map' in args: print('P7\\nWIDTH %d\\nHEIGHT %d\\nDEPTH 4\\nMAXVAL 255\\nTUPLTYPE RGB_ALPHA\\nENDHDR\\n' + '.' * %d, end=''); sys.exit()\n"
    env = false_ffmpeg(tile % (W // 2, H // 2, W * H) + spoil)
    assert is_seen_as(heic, png(), tmp_path, env=env)
    assert '-noautorotate' not in (tmp_path / 'call1').read_text()


@pytest.fixture(scope='module')
def as_webp(tmp_path_factory):
    """RGBA as a WebP that loses nothing but the colour of what nobody sees."""
    folder = tmp_path_factory.mktemp('webp')
    (folder / 'a.png').write_bytes(png())
    if b' libwebp ' not in ffmpeg('-encoders'):
        pytest.skip('this ffmpeg writes no WebP')
    ffmpeg('-i', folder / 'a.png', '-c:v', 'libwebp', '-lossless', 1, folder / 'a.webp')
    return (folder / 'a.webp').read_bytes()


@needs_ffmpeg
@pytest.mark.parametrize('turn', [1, 6, 7])
def test_webp(as_webp, tmp_path, turn):
    want = png(chunk(b'eXIf', exif(turn)))
    assert is_seen_as(webp(as_webp, (b'EXIF', exif(turn))), want, tmp_path)
    assert is_seen_as(webp(as_webp, (b'EXIF', b'Exif\0\0' + exif(turn, '>'))), want, tmp_path)
    assert is_seen_as(webp(as_webp, (b'XMP ', xmp(turn))), want, tmp_path)


@needs_ffmpeg
def test_animated_webp(as_webp, tmp_path):
    """Its first frame."""
    still = webp(as_webp)[30:]
    size = (W - 1).to_bytes(3, 'little') + (H - 1).to_bytes(3, 'little')
    frame = b'ANMF' + struct.pack('<I', 16 + len(still)) + bytes(6) + size + bytes(4) + still
    moving = webp(b'RIFF\0\0\0\0WEBP', (b'ANIM', bytes(6)), flags=0x12) + frame + frame[:24] + b'\0' * (len(frame) - 24)
    moving = moving[:4] + struct.pack('<I', len(moving) - 8) + moving[8:]
    assert is_seen_as(moving, png(), tmp_path)


@needs_ffmpeg
@pytest.mark.parametrize('turn', range(1, 9))
def test_tiff(tmp_path, turn):
    bare = tiff(1).replace(struct.pack('<HHII', 274, 3, 1, 1), struct.pack('<HHII', 274, 3, 1, turn))
    (tmp_path / 'bare.tiff').write_bytes(tiff(1))
    ffmpeg('-i', tmp_path / 'bare.tiff', '-pix_fmt', 'rgb24', '-update', 1, tmp_path / 'want.png')
    want = (tmp_path / 'want.png').read_bytes()
    assert is_seen_as(bare, want[:33] + chunk(b'eXIf', exif(turn)) + want[33:], tmp_path)


@needs_ffmpeg
def test_unusual_jpeg_and_bmp(tmp_path):
    """A JPEG without loss; a BMP whose rows are runs."""
    (tmp_path / 'a.png').write_bytes(png())
    ffmpeg('-i', tmp_path / 'a.png', '-c:v', 'ljpeg', '-pix_fmt', 'bgr24', '-update', 1, tmp_path / 'a.jpg')
    ffmpeg('-i', tmp_path / 'a.jpg', '-pix_fmt', 'rgb24', '-update', 1, tmp_path / 'want.png')
    assert seen(tmp_path / 'a.jpg', tmp_path) == seen(tmp_path / 'want.png', tmp_path)

    def bmp(packed):
        palette = b''.join(bytes((i * 8 % 256, 255 - i, i * 3 % 256, 0)) for i in range(256))
        rows = b''.join(b''.join((b'\1' if packed else b'') + bytes([x * 30 % 256]) for x in range(8)) + b'\0\0' * packed for _ in range(4))
        rows += b'\0\1' * packed
        return (b'BM' + struct.pack('<IHHI', 1078 + len(rows), 0, 0, 1078) +
                struct.pack('<IiiHHIIiiII', 40, 8, 4, 1, 8, packed, len(rows), 2835, 2835, 256, 256) + palette + rows)
    assert is_seen_as(bmp(1), bmp(0), tmp_path)


@needs_ffmpeg
def test_damaged_jpeg(chat, tmp_path):
    """What ffmpeg makes of it is seen; a line says so, once, and nothing where it is told to be quiet."""
    name = tmp_path / 'a.jpg'
    name.write_bytes(PHOTO[:len(PHOTO) * 2 // 3])
    says = '%s: the file is damaged: part of the picture may be missing' % name
    done = run(*EXACT, '-n', 1, '-i', name, 'What?')
    assert (done.returncode, done.stderr.decode().splitlines()[0]) == (0, 'gemma4: warning: %s' % says)
    assert run(*EXACT, '-n', 1, '--quiet', '-i', name, 'What?').stderr == b''
    assert 'the image is truncated: ffmpeg is not installed' in complaint(1, *EXACT, '-i', name, 'What?', env=environment(PATH='/nonexistent'))
    earlier = [user(part(name)), {'role': 'assistant', 'content': 'A'}, user({'type': 'text', 'text': 'And?'})]
    lines = '\n'.join(ask(*messages, max_tokens=1) for messages in (earlier[:1], earlier))
    first, later = (json.loads(line)['choices'][0] for line in answer('--jsonl', *EXACT, stdin=lines).splitlines())
    assert first['warnings'] == [says] and 'warnings' not in later
    ffmpeg('-i', name, '-frames:v', 1, '-pix_fmt', 'rgb24', '-update', 1, tmp_path / 'want.png')
    assert seen(name, tmp_path, '--quiet') == seen(tmp_path / 'want.png', tmp_path)
    c = chat(SEEING, '--exact', '-n', '1')
    assert says in c.say('What is %s?' % name) and says not in c.say('And?')


def test_damaged_png(false_ffmpeg, tmp_path):
    """Pixels that a wrong checksum betrays are not taken as they are; a wrong one of a mere note does no harm."""
    name, whole = tmp_path / 'a.png', png()
    at = whole.index(b'IDAT') - 4
    name.write_bytes(whole[:at] + chunk(b'tEXt', b'note')[:-1] + b'?' + whole[at:])
    assert b'damaged' not in run(*EXACT, '-n', 1, '-i', name, 'What?').stderr
    name.write_bytes(whole[:-13] + bytes([whole[-13] ^ 1]) + whole[-12:])
    says = 'the image is damaged (a wrong checksum): ffmpeg is not installed'
    assert says in complaint(1, *EXACT, '-i', name, 'What?', env=environment(PATH='/nonexistent'))
    done = run(*EXACT, '-n', 1, '--ignore-eos', '-i', name, 'What?', env=false_ffmpeg(gives_rgba(tmp_path)))
    assert done.returncode == 0 and b'the file is damaged' in done.stderr


def test_truncated_qoi(false_ffmpeg, tmp_path):
    """ffmpeg says nothing about it."""
    (tmp_path / 'a').write_bytes(b'qoif' + struct.pack('>IIBB', W, H, 4, 0) + bytes(40))
    done = run(*EXACT, '-n', 1, '--ignore-eos', '-i', tmp_path / 'a', 'What?', env=false_ffmpeg(gives_rgba(tmp_path)))
    assert done.returncode == 0 and b'damaged' in done.stderr


@needs_ffmpeg
@pytest.mark.parametrize('name', ['a.pcx', 'a.sgi', 'a.dpx', 'a.ico'])
def test_old_formats(tmp_path, name):
    (tmp_path / 'a.png').write_bytes(png())
    ffmpeg('-i', tmp_path / 'a.png', '-frames:v', 1, *(('-c:v', 'png') if name == 'a.ico' else ('-pix_fmt', 'rgb24')), tmp_path / name)
    pixels = 'rgba' if name == 'a.ico' else 'rgb24'
    ffmpeg('-i', tmp_path / name, '-pix_fmt', pixels, '-update', 1, tmp_path / 'want.png')
    assert seen(tmp_path / name, tmp_path) == seen(tmp_path / 'want.png', tmp_path)


@needs_ffmpeg
def test_other_kinds_of_pnm(tmp_path):
    """Samples in text, or one bit each: 1 is black."""
    samples = [i * 7 % 256 for i in range(48 * 48 * 3)]
    bits = [i % 5 < 2 for i in range(48 * 48)]
    packed = bytes(sum(bit << 7 - k for k, bit in enumerate(bits[i:i + 8])) for i in range(0, len(bits), 8))
    text, grey = ' '.join(map(str, samples)), ' '.join(map(str, samples[:48 * 48]))
    assert is_seen_as(b'P3\n48 48\n255\n' + text.encode() + b'\n', b'P6\n48 48\n255\n' + bytes(samples), tmp_path)
    assert is_seen_as(b'P2\n48 48\n255\n' + grey.encode() + b'\n', b'P5\n48 48\n255\n' + bytes(samples[:48 * 48]), tmp_path)
    assert is_seen_as(b'P4\n48 48\n' + packed, b'P5\n48 48\n1\n' + bytes(not bit for bit in bits), tmp_path)
    assert is_seen_as(b'P1\n48 48\n' + ' '.join(str(int(bit)) for bit in bits).encode() + b'\n', b'P4\n48 48\n' + packed, tmp_path)
    (tmp_path / 'a.pam').write_bytes(b'P7\nWIDTH 1\nHEIGHT 1\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n123')
    done = run(*EXACT, '-n', 1, '--ignore-eos', '-i', tmp_path / 'a.pam', 'What?')
    assert done.returncode == 0 or 'a PAM: this ffmpeg does not read it' in done.stderr.decode()


@needs_ffmpeg
@pytest.mark.parametrize('head', ['', '<?xml version="1.0" encoding="UTF-8"?>\n'], ids=len)
def test_svg(tmp_path, head):
    (tmp_path / 'a.svg').write_text(head + '<svg xmlns="http://www.w3.org/2000/svg" width="64" height="48"><rect width="64" height="48" fill="#f00"/></svg>')
    if b' librsvg ' not in ffmpeg('-decoders'):
        assert 'an SVG: this ffmpeg does not read it; rsvg-convert FILE -o out.png' in complaint(1, *EXACT, '-i', tmp_path / 'a.svg', 'What?')
        return
    ffmpeg('-f', 'lavfi', '-i', 'color=red:size=64x48,format=rgb24', '-frames:v', 1, '-vf', 'geq=r=255:g=0:b=0', '-update', 1, tmp_path / 'a.png')
    assert seen(tmp_path / 'a.svg', tmp_path) == seen(tmp_path / 'a.png', tmp_path)


@needs_ffmpeg
def test_avif_with_alpha(tmp_path):
    if b' libaom-av1 ' not in ffmpeg('-encoders') or b' avif ' not in ffmpeg('-formats'):
        pytest.skip('this ffmpeg writes no AVIF')
    (tmp_path / 'a.png').write_bytes(png())
    ffmpeg('-i', tmp_path / 'a.png', '-filter_complex', '[0:v]format=yuva444p,split[a][b];[b]alphaextract[c]', '-map', '[a]', '-map', '[c]',
           '-c:v', 'libaom-av1', '-still-picture', 1, '-crf', 2, tmp_path / 'a.avif')
    knows_alpha = subprocess.run(['ffmpeg', '-v', 'quiet', '-i', tmp_path / 'a.avif', '-map', '0:v:1', '-f', 'null', '-'], stdin=subprocess.DEVNULL)
    if knows_alpha.returncode:          # before ffmpeg 6
        assert 'an AVIF: this ffmpeg does not read it' in complaint(1, *EXACT, '-i', tmp_path / 'a.avif', 'What?')
        return
    assert are_alike(seen(tmp_path / 'a.avif', tmp_path), seen(tmp_path / 'a.png', tmp_path), 0.05)


@pytest.mark.parametrize('args', [('--image-tokens', 100, 'x'), ('--video-frames', 0, 'x'), ('-i', 'a.png', '--raw', '-p', 'x'),
                                  ('info', '-i', 'a.png'), ('--jsonl', '-i', 'a.png')], ids=str)
def test_wrong_usage(args):
    complaint(2, *args)


def test_more_tokens_than_a_step_are_refused_never_cut():
    """A picture of 280 soft tokens in a context that has no room for it."""
    assert 'context' in complaint(1, *EXACT, '-c', 100, '-i', IMAGES / 'rgb.png', 'What?')


def test_checkpoint_without_a_tower(copy):
    path = copy(SEEING)
    config = read_json(path / 'config.json')
    config['vision_config'] = None
    write_json(path / 'config.json', config)
    assert 'no vision tower' in complaint(1, '-m', path, '-i', IMAGES / 'rgb.png', 'What?')
    assert answer('-m', path, '--temp', 0, '-n', 2, 'Hello')


@pytest.mark.parametrize('field, value, says', [
    ('use_clipped_linears', True, 'use_clipped_linears'), ('patch_size', 14, 'patch_size'), ('head_dim', 10, 'head_dim'),
    ('num_key_value_heads', 1, 'num_key_value_heads'), ('hidden_activation', 'silu', 'hidden_activation'),
    ('position_embedding_size', 100, 'position_embedding_table: shape'), ('intermediate_size', 41, 'gate_proj.linear.weight: shape'),
    ('num_hidden_layers', 3, 'layers.2.self_attn.q_proj.linear.weight is missing'),
    ('rope_parameters', {'rope_type': 'linear'}, 'rope_type')], ids=str)
def test_configurations(field, value, says, copy):
    path = copy(SEEING)
    config = read_json(path / 'config.json')
    config['vision_config'][field] = value
    write_json(path / 'config.json', config)
    assert says in complaint(1, '-m', path, 'Hello')


def test_image_tokens_of_the_checkpoint(copy):
    """vision_soft_tokens_per_image is what --image-tokens is, unless it is given."""
    path = copy(SEEING)
    config = read_json(path / 'config.json')
    for wrong in -1, 2, 0.5, 'x', 1e9:
        write_json(path / 'config.json', dict(config, vision_soft_tokens_per_image=wrong))
        for call in ('render',), ('-p', 'Hello'):
            assert 'config.json: vision_soft_tokens_per_image' in complaint(1, *call, '-m', path)
    config['vision_soft_tokens_per_image'] = 70
    write_json(path / 'config.json', config)
    case, large = prompt('one'), prompt('large')
    assert ids_of('render', '--ids', '-m', path, stdin=json.dumps({'messages': case['messages']}), cwd=IMAGES) == case['ids']
    assert ids_of('render', '--ids', '-m', path, '--image-tokens', 280, stdin=json.dumps(large), cwd=IMAGES) == large['ids']
    got = ids_of('--exact', '-m', path, '--temp', 0, '-n', 12, '--print-ids', '-i', 'rgb.png', 'What is this?', cwd=IMAGES)
    assert got == case['greedy']
