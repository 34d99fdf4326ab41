"""Text files that the user gives, -f and stdin: the form in which they stand in the prompt, their encodings, and what is no text."""
import json
import zipfile

import pytest

from conftest import FIXTURES, answer, complaint, ids_of, read_json, run

ODD = FIXTURES / 'odd-bf16'
SAY = ('-m', ODD, '--temp', 0, '-n', 8, '--ignore-eos', '--print-ids')
TEXT = 'naïve 🎈\nsecond\n'


def says(question):
    """The answer to a question that is typed."""
    return ids_of(*SAY, '-p', question)


def fenced(name, text, fence='```'):
    return '%s\n%s\n%s%s' % (name, fence, text, fence)


def test_the_form(tmp_path):
    """A line with the name, then the text in a fence that it does not contain."""
    for name, text in (('a.txt', 'one\n'), ('b.md', '````\ntwo\n````\n'), ('c', 'no line end')):
        (tmp_path / name).write_text(text)
    want = '\n\n'.join(['Compare:', fenced('a.txt', 'one\n'),
                         fenced('b.md', '````\ntwo\n````\n', '`````'), fenced('c', 'no line end\n'), 'piped'])
    got = ids_of(*SAY, '-f', 'a.txt', '--file', 'b.md', '-f', 'c', 'Compare:', stdin='piped', cwd=tmp_path)
    assert got == says(want)
    assert ids_of(*SAY, '-f', 'a.txt', cwd=tmp_path) == says(fenced('a.txt', 'one\n')) != says('one\n')


def test_stdin_as_the_file_of_an_option(tmp_path):
    """It is read once: for the option, and not for the question too."""
    call = (*SAY[:-2], '--save', tmp_path / 'talk', 'What?')
    for option, text in [('--json-schema', '{"const": 1}'), ('--tools', '[]'), ('-f', 'one')]:
        assert run(*call, option, '-', stdin=text).returncode == 0
        said = read_json(tmp_path / 'talk')['messages'][0]['content']
        assert said == ('What?\n\nstdin\n```\none\n```' if option == '-f' else 'What?')
    assert 'stdin: not valid JSON at byte 1' in complaint(1, '-m', ODD, 'What?', '--json-schema', '-', stdin='[')
    assert 'stdin: it is empty' in complaint(1, '-m', ODD, 'What?', '--json-schema', '-', stdin=' \n')


@pytest.mark.parametrize('encoding, mark', [('utf-16-le', b'\xff\xfe'), ('utf-16-be', b'\xfe\xff'), ('utf-8', b'\xef\xbb\xbf'), ('utf-8', b'')], ids=str)
def test_encodings(tmp_path, encoding, mark):
    data = mark + TEXT.encode(encoding)
    (tmp_path / 'a.txt').write_bytes(data)
    assert ids_of(*SAY, '-f', 'a.txt', 'What?', cwd=tmp_path) == says('What?\n\n' + fenced('a.txt', TEXT))
    assert ids_of(*SAY, 'What?', stdin=data) == says('What?\n\n' + TEXT)


def archive(*names):
    def make(path):
        with zipfile.ZipFile(path, 'w') as z:
            for name in names:
                text = 'application/' + name.split(':')[1] if ':' in name else 'x'
                z.writestr(name.split(':')[0], text)
    return make


# (what makes it or its bytes, the complaint about it, as a file and on stdin)
NO_TEXT = {
    'latin-1': ('Caf\xe9 cr\xe8me'.encode('latin-1'), 'not UTF-8 (byte 0xE9 at 3), perhaps LATIN1: iconv -f LATIN1 -t UTF-8 {}'),
    'windows': ('\u201cCaf\xe9\u201d'.encode('cp1252'), 'not UTF-8 (byte 0x93 at 0), perhaps WINDOWS-1252: iconv -f WINDOWS-1252 -t UTF-8 {}'),
    'cut utf-8': ('Café'.encode()[:-1], 'not UTF-8 (byte 0xC3 at 3)'),
    'utf-32': ('\ufeffCaf\xe9'.encode('utf-32-le'), 'UTF-32: iconv -f UTF-32 -t UTF-8 {}'),
    'utf-16 without a mark': ('Cafe'.encode('utf-16-le'), 'UTF-16LE without a byte order mark: iconv -f UTF-16LE -t UTF-8 {}'),
    'utf-16 big, without a mark': ('Cafe'.encode('utf-16-be'), 'UTF-16BE without a byte order mark'),
    'half a pair': (b'\xff\xfe' + b'\x3d\xd8', 'UTF-16 with half a pair of surrogates at byte 2'),
    'a wrong pair': (b'\xff\xfe' + b'\x3d\xd8a\0', 'UTF-16 with half a pair of surrogates at byte 2'),
    'a second half': (b'\xff\xfe' + b'\0\xdca\0', 'UTF-16 with half a pair of surrogates at byte 2'),
    'odd utf-16': (b'\xff\xfea', 'UTF-16 of an odd number of bytes'),
    'utf-16 with a nul': ('\ufeffabc\0defg'.encode('utf-16-le'), 'a NUL byte'),
    'a nul': (b'one\0two three', 'a NUL byte: a message is text'),
    'pdf': (b'%PDF-1.7\n1 0 obj', 'a PDF, not text: pdftotext -layout {} - makes text of it'),
    'png': (b'\x89PNG\r\n\x1a\n\0\0', 'a PNG, not text; pictures go with -i, or /image'),
    'webp': (b'RIFF\xff\0\0\0WEBPVP8 ', 'a WebP, not text; pictures go with -i, or /image'),
    'mp4': (b'\0\0\0\x18ftypisom\0', 'an MP4 or QuickTime video, not text; videos go with --video, or /video'),
    'gzip': (b'\x1f\x8b\x08\0', 'compressed by gzip, not text: zcat {} makes text of it'),
    'doc': (b'\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1', 'an old Office document, not text: libreoffice'),
    'elf': (b'\x7fELF\2\1\1\0', 'a program, not text'),
    'docx': (archive('[Content_Types].xml', 'word/document.xml'), 'a DOCX, not text: pandoc -t plain {} makes text of it'),
    'odt': (archive('mimetype:vnd.oasis.opendocument.text'), 'an ODT, not text: pandoc'),
    'epub': (archive('mimetype:epub+zip'), 'an EPUB, not text: pandoc'),
    'xlsx': (archive('xl/workbook.xml'), 'an XLSX, not text: libreoffice'),
    'zip': (archive('a.txt'), 'a ZIP archive, not text'),
}


@pytest.mark.parametrize('name', NO_TEXT)
def test_what_is_no_text(tmp_path, name):
    content, complains = NO_TEXT[name]
    path = tmp_path / 'file'
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    assert ('gemma4: %s: ' % path) + complains.format(path) in complaint(1, '-m', ODD, '-f', path, 'What?')
    assert 'gemma4: stdin: ' + complains.format('FILE') in complaint(1, '-m', ODD, 'What?', stdin=path.read_bytes())


def test_what_looks_like_a_format_and_is_text(tmp_path):
    for text in ('BM is a name', '<svg width="1"/>', 'ID3 tags', '<?xml version="1.0"?><svg/>'):
        assert answer('-m', ODD, '-n', 1, '--temp', 0, 'What?', stdin=text)


@pytest.mark.parametrize('path, complains', [('/no/such/file', 'No such file'), ('/', 'Is a directory'), ('/dev/null', 'the file is empty'),
                                             ('/dev/zero', 'more than 64 MB')], ids=str)
def test_files_that_cannot_be_read(path, complains):
    assert 'gemma4: %s: ' % path + complains in complaint(1, '-m', ODD, '-f', path, 'What?')


@pytest.mark.parametrize('args', [('--raw', '-p', 'x'), ('--jsonl',), ('info',), ('--ids', 'x')], ids=str)
def test_wrong_usage(args):
    assert '-f belongs to a question or the chat' in complaint(2, *args, '-f', 'x')


def test_raw_takes_any_bytes():
    done = run('-m', ODD, '--raw', '-n', 1, '--ignore-eos', stdin=b'Caf\xe9')
    assert done.returncode == 0
