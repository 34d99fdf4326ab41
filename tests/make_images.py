#!/usr/bin/env python3
"""Make tests/fixtures/images/ again: small pictures in every format, a checkpoint that can look at them, and what
transformers sees in them and says of them.

usage: make_images.py [FFMPEG]          FFMPEG: the program that makes and reads clip.mp4 (default: ffmpeg)

Needs what make_fixtures.py needs, and pillow and torchvision. The patches are those of image_processing_gemma4.py, the frames those of
video_processing_gemma4.py, the prompts those of processing_gemma4.py.

images/*                 the pictures; NAME.jpg.png is NAME.jpg as Pillow decodes it (other decoders differ by some units)
images/seeing/           the checkpoint: BF16, dense, a window of 24, positions for 216 patches a side
images/cases.json
    files                {file, width, height, tokens, columns, rows, hash of the bytes of the patches; none for JPEGs}
    sizes                the same for pictures that a formula makes (see formula)
    prompts              {name, messages or a request's other fields, options, ids, greedy}
images/ref.safetensors   NAME_features_f32 [soft tokens, hidden]; NAME_logits_f32 [vocab], after the prompt of that name
"""
import json
import os
import struct
import subprocess
import sys
import zlib
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image, ImageOps, ImageSequence
from tokenizers import Tokenizer
from transformers.models.gemma4.image_processing_gemma4 import Gemma4ImageProcessor
from transformers.models.gemma4.processing_gemma4 import Gemma4Processor
from transformers.models.gemma4.video_processing_gemma4 import Gemma4VideoProcessor
from transformers.video_utils import VideoMetadata

import make_fixtures as mf

FFMPEG = sys.argv[1] if len(sys.argv) > 1 else 'ffmpeg'
OUT = os.path.join(mf.OUT, 'images')
VIDEO = 503
SHAPE = dict(seed=211, layers='sf', hidden=80, heads=4, kv=2, global_kv=2, head_dim=24, global_head_dim=40, window=24,
             mlp=48, experts=0, expert_dim=0, top_k=0, quantised=(), kv_cache=None)
rng = np.random.default_rng(7)


# ---------------------------------------------------------------------------------------------- pictures

def scene(w, h, seed=0):
    """Soft colours with edges in them, another picture for each seed."""
    y, x = np.mgrid[:h, :w].astype(float)
    r = np.random.default_rng(seed)
    out = np.empty((h, w, 3))
    for c in range(3):
        a, b, p = r.uniform(0.02, 0.3, 2).tolist() + [r.uniform(0, 6)]
        out[..., c] = 128 + 90 * np.sin(a * x + b * y + p)
    for _ in range(3):
        cx, cy, radius = r.uniform(0, w), r.uniform(0, h), r.uniform(0.1, 0.4) * min(w, h)
        out[(x - cx) ** 2 + (y - cy) ** 2 < radius ** 2] = r.integers(0, 256, 3)
    return out.clip(0, 255).astype(np.uint8)


def formula(w, h):
    """What tests/test_image.c computes too: a picture of any size, rough and smooth."""
    y, x, c = np.meshgrid(np.arange(h), np.arange(w), np.arange(3), indexing='ij')
    return np.where((x // 8 + y // 8) % 2, x * 5 + y * 3 + c * 40, x * 37 + y * 101 + c * 53 + x * y * 7).astype(np.uint8)


def png(path, bits, colour, rows):
    """A PNG as Pillow does not write it: rows of bytes, no filter."""
    h, w = rows.shape[:2]
    chunk = lambda name, data: struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
    raw = b''.join(b'\0' + row.tobytes() for row in rows)
    with open(path, 'wb') as f:
        f.write(b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, bits, colour, 0, 0, 0)) +
                chunk(b'IDAT', zlib.compress(raw, 9)) + chunk(b'IEND', b''))


def make_pictures():
    """{file: what the reference is given for it}"""
    at = lambda name: os.path.join(OUT, name)
    given = {}

    def save(name, image, **kwargs):
        image.save(at(name), **kwargs)
        given[name] = ImageOps.exif_transpose(Image.open(at(name)))
        if name.endswith('.jpg'):
            given[name].convert('RGB').save(at(name + '.png'), optimize=True)

    rgb = lambda w, h, seed: Image.fromarray(scene(w, h, seed))
    save('rgb.png', rgb(60, 40, 1), optimize=True)
    save('grey.png', rgb(33, 70, 2).convert('L'))
    save('palette.png', rgb(50, 50, 3).quantize(16))
    indexed = rgb(40, 30, 4).quantize(8)
    save('see-through.png', indexed, transparency=3)
    alpha = np.linspace(0, 255, 48 * 36).reshape(36, 48).astype(np.uint8)
    save('alpha.png', Image.fromarray(np.dstack([scene(48, 36, 5), alpha])))
    save('grey-alpha.png', Image.fromarray(np.dstack([scene(48, 36, 6)[..., 0], alpha])))
    save('bits.png', rgb(45, 20, 7).convert('1'))
    deep = rng.integers(0, 65536, (20, 24, 3))
    png(at('deep.png'), 16, 2, deep.astype('>u2'))
    given['deep.png'] = Image.fromarray((deep >> 8).astype(np.uint8))
    png(at('deep-grey.png'), 16, 0, deep[..., 0].astype('>u2'))
    given['deep-grey.png'] = Image.fromarray((deep[..., 0] >> 8).astype(np.uint8))
    save('rgb.bmp', rgb(21, 30, 8))
    save('palette.bmp', rgb(30, 21, 9).quantize(16))
    save('rgb.ppm', rgb(25, 18, 10))
    save('grey.pgm', rgb(18, 25, 11).convert('L'))
    save('rgb.tga', rgb(22, 16, 12))
    save('packed.tga', rgb(40, 16, 13).quantize(4).convert('RGB'), compression='tga_rle')
    save('alpha.tga', Image.fromarray(np.dstack([scene(24, 18, 14), alpha[:18, :24]])))
    save('still.gif', rgb(40, 40, 15).quantize(32))
    save('photo.jpg', rgb(96, 72, 16), quality=85)
    save('progressive.jpg', rgb(80, 60, 17), quality=80, progressive=True)
    save('grey.jpg', rgb(64, 48, 18).convert('L'), quality=85)
    for i in range(1, 9):
        exif = Image.Exif()
        exif[0x112] = i
        save('turned%d.jpg' % i, rgb(40, 24, 19), quality=90, exif=exif)
    exif = Image.Exif()
    exif[0x112] = 6
    save('turned.png', rgb(40, 24, 19), exif=exif)
    save('wide.png', rgb(600, 5, 20), optimize=True)
    save('tall.png', rgb(4, 300, 21), optimize=True)

    # Frames that move over what was there, with transparency and all ways of disposal, lasting differently.
    frames = []
    for i in range(9):
        a = np.zeros((32, 44, 4), np.uint8)
        a[8:20, 4 * i:4 * i + 12] = (20 * i, 255 - 20 * i, 90, 255)
        if i == 0:
            a[...] = 255
            a[:, :22, 1] = 60
        frames.append(Image.fromarray(a))
    frames[0].save(at('moving.gif'), save_all=True, append_images=frames[1:], duration=[300, 200, 1000, 100, 900, 4000, 60, 20, 700],
                   disposal=[1, 1, 2, 1, 2, 3, 3, 1, 1], loop=0)
    clip = os.path.join(OUT, 'clip.mp4')
    raw = b''.join(scene(64, 48, 40 + i // 5).tobytes() for i in range(40))
    subprocess.run([FFMPEG, '-v', 'error', '-y', '-f', 'rawvideo', '-pix_fmt', 'rgb24', '-s', '64x48', '-r', '8', '-i', '-', '-c:v',
                    'mpeg4', '-q:v', '6', clip], input=raw, check=True)
    return given


def gif_frames(path, w, h):
    """As ffmpeg decodes it, which is behind the reference's load_video: where a frame is disposed of by "background" nothing
    is left, and white shows. (Pillow paints a colour of the palette there.)"""
    raw = subprocess.run([FFMPEG, '-v', 'quiet', '-i', path, '-fps_mode', 'passthrough', '-f', 'rawvideo', '-pix_fmt', 'rgba', '-'],
                         stdout=subprocess.PIPE, check=True).stdout
    frames = np.frombuffer(raw, np.uint8).reshape(-1, h, w, 4)
    over = [np.array(Image.alpha_composite(Image.new('RGBA', (w, h), (255, 255, 255, 255)), Image.fromarray(f)).convert('RGB')) for f in frames]
    return np.stack(over), len(frames) / sum(f.info['duration'] / 1000 for f in ImageSequence.Iterator(Image.open(path)))


def mp4_frames(path, w, h, fps):
    raw = subprocess.run([FFMPEG, '-v', 'error', '-i', path, '-f', 'rawvideo', '-pix_fmt', 'rgb24', '-'], stdout=subprocess.PIPE,
                         check=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, h, w, 3), fps


# ---------------------------------------------------------------------------------------------- the reference

def fnv(data):
    h = 0xcbf29ce484222325
    for b in data:
        h = (h ^ b) * 0x100000001b3 & 0xffffffffffffffff
    return '%016x' % h


PROCESSOR = Gemma4ImageProcessor()


def look(image, tokens):
    """What the processor makes of a picture: pixel_values and positions without padding, and the bytes of its patches."""
    out = PROCESSOR(images=[image], max_soft_tokens=tokens, return_tensors='pt')
    real = (out['image_position_ids'][0] >= 0).all(-1)
    pixels, places = out['pixel_values'][:, real], out['image_position_ids'][:, real]
    return SimpleNamespace(pixels=pixels, places=places, columns=int(places[0, :, 0].max()) + 1, rows=int(places[0, :, 1].max()) + 1,
                           soft=int(out['num_soft_tokens_per_image'][0]), bytes=(pixels * 255).round().byte().numpy().tobytes())


def watch(frames, fps, count):
    out = Gemma4VideoProcessor()(videos=[frames], video_metadata=[VideoMetadata(total_num_frames=len(frames), fps=fps, width=frames.shape[2],
                                 height=frames.shape[1], duration=len(frames) / fps)], num_frames=min(count, len(frames)),
                                 return_tensors='pt', return_metadata=True)
    real = (out['video_position_ids'][0] >= 0).all(-1)
    return SimpleNamespace(pixels=out['pixel_values_videos'][:, real], places=out['video_position_ids'][:, real],
                           frames=out['num_frames_per_video'], soft=out['num_soft_tokens_per_video'], metadata=out['video_metadata'])


def main():
    os.makedirs(os.path.join(OUT, 'seeing'), exist_ok=True)
    mf.VISION.update(positions=216)
    given = make_pictures()
    path = os.path.join(OUT, 'seeing')
    config, _ = mf.make_config(SHAPE)
    weights = mf.fuse_experts(SHAPE, mf.quantise(SHAPE, mf.make_weights(SHAPE))[1])
    mf.save_tensors(os.path.join(path, 'model.safetensors'), {k: torch.from_numpy(v).bfloat16() for k, v in weights.items()}, {'format': 'pt'})
    mf.write_json(os.path.join(path, 'config.json'), config)
    mf.write_json(os.path.join(path, 'generation_config.json'), {'bos_token_id': 2, 'eos_token_id': mf.EOS, 'pad_token_id': 0})
    for f in ('tokenizer.json', 'tokenizer_config.json'):
        with open(os.path.join(mf.OUT, 'odd-bf16', f)) as i, open(os.path.join(path, f), 'w') as o:
            o.write(i.read())
    ref = mf.Reference(config, weights)
    tokenizer = Tokenizer.from_file(os.path.join(path, 'tokenizer.json'))
    values, cases = {}, {'files': [], 'sizes': [], 'prompts': []}

    for name, image in given.items():
        tokens = 140 if name == 'rgb.png' else 70
        seen = look(image, tokens)
        case = dict(file=name, width=image.width, height=image.height, tokens=tokens, columns=seen.columns, rows=seen.rows)
        if not name.endswith('.jpg'):
            case['hash'] = fnv(seen.bytes)
        cases['files'].append(case)
        if name in ('rgb.png', 'see-through.png', 'deep.png', 'rgb.bmp', 'rgb.ppm', 'rgb.tga', 'still.gif', 'photo.jpg', 'turned6.jpg', 'wide.png'):
            features = ref.model.model.get_image_features(seen.pixels, seen.places).pooler_output[0]
            values[name + '_features_f32'] = features.reshape(seen.soft, -1)

    for w, h, tokens in ((1, 1, 70), (48, 48, 70), (47, 49, 280), (640, 480, 280), (480, 640, 140), (1000, 30, 70), (9, 1300, 280), (7, 5, 1120),
                         (300, 300, 560), (1536, 1536, 1120), (768, 768, 280), (1111, 913, 70), (200, 1, 140), (2500, 2, 70), (400, 384, 70)):
        seen = look(Image.fromarray(formula(w, h)), tokens)
        cases['sizes'].append(dict(width=w, height=h, tokens=tokens, columns=seen.columns, rows=seen.rows, hash=fnv(seen.bytes)))

    def prompt(name, text, messages, images=(), videos=(), options=()):
        """text: what the chat template makes of messages, with a mark for each picture; grown by the processor's own code."""
        tokens = SimpleNamespace(boi_token='<|image>', eoi_token='<image|>', image_token='<|image|>', video_token='<|video|>')
        for i, seen in enumerate(images):
            text = text.replace('{image}', Gemma4Processor.replace_image_token(tokens, {'num_soft_tokens_per_image': [seen.soft]}, 0), 1)
        for seen in videos:
            text = text.replace('{video}', Gemma4Processor.replace_video_token(
                tokens, {'num_soft_tokens_per_video': seen.soft, 'video_metadata': seen.metadata}, 0), 1)
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        inputs = {}
        if images:
            n = max(len(s.pixels[0]) for s in images)
            grow = lambda t, v: torch.nn.functional.pad(t, (0, 0, 0, n - t.shape[1]), value=v)
            inputs.update(pixel_values=torch.cat([grow(s.pixels, 0) for s in images]),
                          image_position_ids=torch.cat([grow(s.places, -1) for s in images]))
        for seen in videos:
            inputs.update(pixel_values_videos=seen.pixels, video_position_ids=seen.places, num_frames_per_video=torch.as_tensor(seen.frames))
        greedy, margins, first = [], [], None
        while len(greedy) < 12:
            step = torch.tensor([ids + greedy])
            types = (step == mf.IMAGE).int() + 2 * (step == VIDEO).int()
            types[:, len(ids):] = 0
            logits = ref.model(input_ids=step, mm_token_type_ids=types, **inputs).logits[0, -1]
            first = logits.clone() if first is None else first
            for out in mf.PLACEHOLDERS:  # what it may not say, or the next step would want another picture
                logits[out] = -100
            top = logits.topk(2)
            greedy.append(top.indices[0].item())
            margins.append((top.values[0] - top.values[1]).item())
            if greedy[-1] in mf.EOS:
                break
        print(name, len(ids), greedy, 'margin', min(margins), flush=True)
        cases['prompts'].append(dict(name=name, messages=messages, options=list(options), ids=ids, greedy=greedy))
        values[name + '_logits_f32'] = first

    part = lambda name: {'type': 'image_url', 'image_url': {'url': name}}
    clip = lambda name: {'type': 'video_url', 'video_url': {'url': name}}
    say = lambda text: {'type': 'text', 'text': text}
    user = lambda *content: {'role': 'user', 'content': list(content)}
    empty = '<|turn>model\n<|channel>thought\n<channel|>'
    at70 = lambda name: look(given[name], 70)
    few = ('--image-tokens', '70')
    prompt('one', '<bos><|turn>user\n{image}What is this?<turn|>\n' + empty, [user(part('rgb.png'), say('What is this?'))], [at70('rgb.png')],
           options=few)
    prompt('two', '<bos><|turn>user\nFirst{image}then{image}The same?<turn|>\n' + empty,
           [user(say('First'), part('alpha.png'), say('then'), part('grey.png'), say('The same?'))], [at70('alpha.png'), at70('grey.png')], options=few)
    prompt('second turn', '<bos><|turn>user\nHello<turn|>\n<|turn>model\nGood morning.<turn|>\n<|turn>user\nLook:{image}<turn|>\n' + empty,
           [user(say('Hello')), {'role': 'assistant', 'content': 'Good morning.'}, user(say('Look: '), part('still.gif'))], [at70('still.gif')],
           options=few)
    prompt('again', '<bos><|turn>user\n{image}One<turn|>\n<|turn>model\nA boat.<turn|>\n<|turn>user\n{image}{image}Which?<turn|>\n' + empty,
           [user(part('rgb.png'), say('One')), {'role': 'assistant', 'content': 'A boat.'}, user(part('rgb.png'), part('rgb.bmp'), say('Which?'))],
           [at70('rgb.png'), at70('rgb.png'), at70('rgb.bmp')], options=few)
    prompt('large', '<bos><|turn>user\n{image}<turn|>\n' + empty, [user(part('rgb.png'))], [look(given['rgb.png'], 280)])
    frames, fps = gif_frames(os.path.join(OUT, 'moving.gif'), 44, 32)
    prompt('gif', '<bos><|turn>user\n{video}What happens?<turn|>\n' + empty, [user(clip('moving.gif'), say('What happens?'))],
           videos=[watch(frames, fps, 32)])
    prompt('gif of four', '<bos><|turn>user\nSee{video}Well?<turn|>\n' + empty, [user(say('See'), clip('moving.gif'), say('Well?'))],
           videos=[watch(frames, fps, 4)], options=('--video-frames', '4'))
    frames, fps = mp4_frames(os.path.join(OUT, 'clip.mp4'), 64, 48, 8)
    prompt('mp4', '<bos><|turn>user\n{video}What happens?<turn|>\n' + empty, [user(clip('clip.mp4'), say('What happens?'))],
           videos=[watch(frames, fps, 5)], options=('--video-frames', '5'))

    mf.save_tensors(os.path.join(OUT, 'ref.safetensors'), {k: v.detach().float().contiguous() for k, v in values.items()})
    with open(os.path.join(OUT, 'cases.json'), 'w') as f:
        f.write('{\n' + ',\n'.join('"%s": [\n%s\n]' % (k, ',\n'.join(json.dumps(c) for c in v)) for k, v in cases.items()) + '\n}\n')


if __name__ == '__main__':
    main()
