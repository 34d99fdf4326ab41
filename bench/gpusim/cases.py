"""What is launched: each kernel's grid, block, shared memory and arguments, as launch.cu and cuda.cu set them.  This is the file to edit when a kernel
changes: an argument is (type, value), in the order of the kernel's parameters; types are C's, or a struct of the sources.  The structs
themselves are read from the sources, so new fields need nothing here unless a kernel cannot do without them (a pointer that is NULL).

Memory.  m.cold(n): n bytes that come from DRAM, m.warm(n): that the kernel before left in the L2; all their numbers are 1.0.
m.real(bytes): with contents, which the kernel also writes (tables, lists, counters)."""
import ctypes, random, re, struct

HIDDEN, INNER, SIZE, EXPERTS, TOP, HEADS, VOCAB, WINDOW, EPS = 2816, 2112, 704, 128, 8, 16, 262144, 1024, 1e-6
LAYERS = {'sliding': 25, 'global': 5}
BF16, FP8, NVFP4, INT4, INT8 = 2, 4, 5, 6, 106  # DType (INT8: INT4's with 8 bits); checked against safetensors.h below
BYTES = {BF16: 2, FP8: 1, NVFP4: .5, INT4: .5, INT8: 1}         # of a number
# The format of attention, of the dense MLP and of the experts.  mixed, fp8, int4 and int8 have cases for decode alone.
LAYOUTS = {'nvidia': (BF16, BF16, NVFP4), 'fp4': (NVFP4, NVFP4, NVFP4), 'mixed': (FP8, NVFP4, NVFP4), 'fp8': (FP8, FP8, FP8), 'int4': (INT4, INT4, INT4), 'int8': (INT8, INT8, INT8)}
THREADS, WARPS, GEMM_SHARED, JOIN, CHUNK, SLOTS = 256, 8, 96 * 1024, 17, 2048, 8192       # SLOTS: of a session's context, at least
JOINED_BY_BLOCK, JOINED_NUMBERS = 1024, 128     # attention.cu
AHEAD, AHEAD_OF_DOWN = 32 << 10, 24 << 10       # stream.cu
STREAM_WARPS, DEEP, SHALLOW = 12, 5, 3         # stream.cu
HOPPER = [(1, 128, 1, 1), (2, 128, 1, 1.6), (1, 128, 0, 1), (1, 256, 0, 1.75)]      # hopper.cu, variant: MR, N, packed, cost


def ceil(a, b): return -(-a // b)
def padded(c): return ceil(c, 64) * 64
def tiles(rows): return ceil(rows, 8)
def wide(c): return ceil(c, 256) * 256
def vector_bytes(c, rows=3): return 2 * rows * (wide(c) + 32)
def edge_bytes(n): return 2 * STREAM_WARPS * 2 * n * 44
def choice_bytes(top): return padded((2 * top + 1) * 48 + 8 * padded(top))
def stage_bytes(dtype, mt, parts): return parts * 32 * mt * 128 + 128 * (128 if dtype == BF16 else 36)


# ---- structs, from the sources ----

class TensorMap(ctypes.Structure):
    """A CUtensorMap's 128 bytes as sim.cpp reads them (what the driver writes is not documented): a matrix in memory, and the box of it that a copy brings.
    Columns count elements of `element` bytes; pitch: bytes from row to row; swizzle: 128, or 0 for none."""
    ALIGN = 64
    _fields_ = [(n, ctypes.c_uint64) for n in ('data', 'pitch')] + [(n, ctypes.c_uint32) for n in ('columns', 'rows', 'box_columns', 'box_rows', 'element', 'swizzle')] + [('unused', ctypes.c_uint32 * 22)]


SCALAR = {'int': ctypes.c_int32, 'DType': ctypes.c_int32, 'unsigned': ctypes.c_uint32, 'float': ctypes.c_float, 'int64_t': ctypes.c_int64, 'size_t': ctypes.c_uint64,
          'pointer': ctypes.c_uint64, 'float2': ctypes.c_uint64, 'uint16_t': ctypes.c_uint16, 'uint8_t': ctypes.c_uint8, 'CUtensorMap': TensorMap}


def read_structs(folder):
    found = dict(SCALAR)
    for f in ('ops.h', 'product.h', 'step.cu', 'residual.cu', 'stream.cu', 'lora.cu', 'attention.cu', 'few.cu', 'top.cu', 'head.cu', 'fp4.h', 'hopper.cu'):
        text = re.sub(r'/\*.*?\*/', '', open('%s/%s' % (folder, f)).read(), flags=re.S)
        for body, name in re.findall(r'typedef struct(?: \w+)? \{([^{}]*)\} (\w+);', text):
            fields = []
            for line in body.split(';'):
                m = re.match(r'\s*(?:const\s+)?(\w+)\s+(.*)', line, re.S)
                if not m: continue
                for one in m.group(2).split(','):
                    one = one.strip()
                    array = re.fullmatch(r'(.*)\[(\d+)\]', one)
                    of = found['pointer'] if '*' in one else found.get(m.group(1)) if re.fullmatch(r'\w+(\[\d+\])?', one) else None
                    if array and of: one, of = array.group(1), of * int(array.group(2))
                    fields.append((re.sub(r'\W', '', one), of))
            if all(t for _, t in fields): found[name] = type(name, (ctypes.Structure,), dict({'ALIGN': 64} if 'CUtensorMap' in body else {}, _fields_=fields))
    order = re.search(r'typedef enum \{([^}]*)\} DType', open(folder + '/safetensors.h').read()).group(1).replace(' ', '').split(',')
    assert [order.index(x) for x in ('DT_BF16', 'DT_F8_E4M3', 'DT_U8', 'DT_I32')] == [BF16, FP8, NVFP4, INT4], 'DType has changed'
    return found


def pack(arguments, types, base=0):
    """-> the bytes of the parameters, which begin at `base` of their bank, and [(offset, size)] of each."""
    out, where = b'', []
    for t, v in arguments:
        c = types[t]
        b = bytes(v if isinstance(v, ctypes.Structure) else c(v))
        out += b'\0' * (-(base + len(out)) % getattr(c, 'ALIGN', ctypes.alignment(c)))
        where.append((len(out), len(b)))
        out += b
    return out, where


class Memory:
    def __init__(self): self.at = {'cold': 0x100000000000, 'warm': 0x300000000000, 'real': 0x500000000000}; self.contents = []; self.needed = 0; self.ahead = []; self.behind = 0
    def take(self, kind, n):
        a = self.at[kind]
        self.at[kind] += ceil(max(n, 1), 256) * 256
        return a
    def cold(self, n): return self.take('cold', n)
    def must(self, n): self.needed += n; return self.cold(n)       # all of it must be read
    def warm(self, n): return self.take('warm', n)
    def real(self, b): a = self.take('real', len(b)); self.contents.append((a, bytes(b))); return a
    def zeros(self, n): return self.real(bytes(n))


    def ahead_of(self, w, blocks, n=AHEAD):
        """What bring_ahead (stream.cu) brings of w, n bytes of each block: [(address, bytes)]."""
        share = int(w.rows * padded(w.cols) * BYTES[w.dtype + 100 * (w.dtype == INT4 and w.bits == 8)]) // 128 // blocks * 128
        return [(w.data + share * b, min(n // 128 * 128, share)) for b in range(blocks)]
    def next_of(self, matrices, start, n, blocks, Next):
        """launch.cu's next_of -> a Next, what bring_next brings, how many bytes are left of n."""
        next, regions = Next(), []
        for i, w in enumerate(matrices):
            pitch = [(w.data, int(padded(w.cols) * BYTES[w.dtype]))] + [(w.block_scale, padded(w.cols) // 16)] * (w.dtype == NVFP4)
            row = sum(p for _, p in pitch)
            there = min(w.rows * row, start)
            now = min(w.rows * row - there, n)
            start, n = start - there, n - now
            if not now: continue
            next.w[i], next.rows[i], share = w, ceil((there + now) // row, blocks), ceil(w.rows, blocks)
            next.share[i] = share
            regions += [(at + share * b * p, ceil(min(next.rows[i], w.rows - share * b) * p, 128) * 128) for at, p in pitch for b in range(blocks) if share * b < w.rows]
        return next, regions, n
    # What the launch brings for a later one; what an earlier one has brought into the L2 for it.
    def brings(self, regions): self.needed += len(lines(regions) - lines(self.ahead)) * 128
    # behind: bytes that were asked for later than these.
    def has(self, regions): self.needed -= len(lines(regions) - lines(self.ahead)) * 128; self.ahead += regions


def lines(regions): return {at // 128 for a, n in regions for at in range(a, a + n, 128)}


class Launch:
    """kernel: a regular expression for the mangled name.  per: how often in a step, by step name.  needed: bytes that must come from DRAM.
    reuse: how many blocks read each of them, all but the first one from the L2.
    early: it may begin before the kernel ahead has ended, as both have room on a multiprocessor.
    in_tiles: many blocks read the same weights, so what all read is not what a sample reads.  suffix: of the architecture, 'a' for hopper.o and fp4.o.
    cluster: neighbouring blocks in one, where it is the launch that says so."""
    reuse, early, in_tiles, suffix, cluster = 1, True, False, '', 1
    def __init__(self, name, kernel, grid, block, shared, arguments, memory, sample=12, flop=0, **per):
        self.name, self.kernel, self.grid, self.block, self.shared, self.arguments = name, kernel, grid, block, shared, arguments
        self.memory, self.sample, self.flop, self.needed, self.per = memory, sample, flop, memory.needed, per


# ---- the model's parts ----

class Model:
    def __init__(self, layout, types, gpu, context):
        self.t, self.gpu, self.context, self.of_attend, self.of_experts = types, gpu, context, {}, []
        self.dense, self.mlp, self.expert = LAYOUTS[layout]         # dense: of attention
        self.hidden, self.inner = HIDDEN, INNER
        self.every_kind = not {self.dense, self.mlp, self.expert} <= {BF16, NVFP4}
        self.tokens, self.wgmma, self.fp4_activations = 1, False, False      # hopper.cu or fp4.cu multiplies more than 16 tokens
        self.limit = gpu['shared_limit'] - 1024
        self.ahead = max(min(gpu['l2_size'] // 4, 12 << 20), min(gpu['l2_size'] // 2, 3 << 20))      # ahead_of in open.cu
        self.ahead_of_mlp = max(gpu['l2_size'] // 4, self.ahead)      # launch.cu
        self.depth = DEEP if self.limit > 160 * 1024 else SHALLOW
        self.ring = STREAM_WARPS * self.depth * (1184 if self.every_kind else 1152)
    def __getattr__(self, name): return self.t[name]        # structs: m.Layer(...)

    def fits(self, shared, most):
        """gpu_fits in gpu.h, but for registers.  2 KB: what CUDA takes of each block, and what the kernel declares."""
        return min(most, self.gpu['shared_sm'] // (shared + 2048))

    def weight(self, m, dtype, rows, cols, read=None):
        """read: the share of it that the launch must read (its layer may have more than the kernel needs)."""
        n = int(rows * padded(cols) * BYTES[dtype])
        scales = {BF16: 0, FP8: 4 * rows, NVFP4: n // 8, INT4: 16 * rows * ceil(cols, 256), INT8: 16 * rows * ceil(cols, 128)}[dtype]      # as in product.h
        m.needed += int((n + scales) * (read or 0))
        return self.Weight(dtype=dtype % 100, rows=rows, cols=cols, data=m.cold(n), block_scale=m.cold(scales) if scales else 0, scale=1,
                           scale_dtype=0 if dtype == INT8 else BF16, bits=8 if dtype == INT8 else 4, scale_cols=32 if dtype in (INT4, INT8) else cols)

    def layer(self, m, kind, *read, used=TOP):
        """A layer; `read` names the matrices that the launch reads once; `used`: so many experts of them."""
        hd, kv = (512, 2) if kind == 'global' else (256, 8)
        w = lambda name, rows, cols, t=self.dense: self.weight(m, t, rows, cols, name in read)
        l = self.Layer(head_dim=hd, n_kv_heads=kv, layer_scalar=1, k_scale=1, v_scale=1, q=w('q', HEADS * hd, self.hidden), k=w('k', kv * hd, self.hidden),
                       o=w('o', self.hidden, HEADS * hd), gate=w('gate', self.inner, self.hidden, self.mlp), up=w('up', self.inner, self.hidden, self.mlp), down=w('down', self.hidden, self.inner, self.mlp),
                       router=w('router', EXPERTS, self.hidden, BF16), inv_freq=m.cold(2 * hd))
        setattr(l, 'global', int(kind == 'global'))
        if self.hidden != HIDDEN: l.k = self.Weight()        # a drafter's layer: keys and values are those of its target
        elif kind == 'sliding': l.v = w('v', kv * hd, self.hidden)
        for n in ('input_norm', 'post_attention_norm', 'pre_mlp_norm', 'post_mlp_norm', 'pre_experts_norm', 'post_experts_norm', 'post_ffn_norm', 'router_scale'):
            setattr(l, n, m.cold(4 * self.hidden))
        l.q_norm, l.k_norm, l.per_expert_scale = m.cold(4 * hd), m.cold(4 * hd), m.cold(4 * EXPERTS)
        l.expert_gate, l.expert_up = (self.experts(m, SIZE, self.hidden, n in read, used) for n in ('expert_gate', 'expert_up'))
        l.expert_down = self.experts(m, self.hidden, SIZE, 'expert_down' in read, used)
        return l

    def experts(self, m, rows, cols, read, used=TOP):
        table, before = [self.weight(m, self.expert, rows, cols) for _ in range(EXPERTS)], m.needed
        self.weight(m, self.expert, rows, cols, 1)
        m.needed = before + used * (m.needed - before) * int(read)
        self.chosen = table[:TOP]
        self.of_experts.append(table)
        return m.real(b''.join(map(bytes, table)))

    def residual(self, m, l, end, place=None, n=1):
        """end: of attention, or of a layer.  place: None, b is summed; b'', it is apart; or where its rows are."""
        v = lambda: m.warm(4 * n * self.hidden)
        r = self.Residual(x=v(), to=v(), a=v(), eps=EPS, scalar=1, top_k=TOP, norm=l.post_attention_norm if end == 'attention' else l.post_ffn_norm)
        if end == 'layer':
            r.b, r.norm_a, r.norm_b = m.warm(4 * n * self.hidden * (1 if place is None else TOP)), l.post_mlp_norm, l.post_experts_norm
            if place is not None: r.weight = m.warm(4 * n * TOP)
            if place: r.place = m.real(place)
        return r

    def attend(self, kind, n, step, per):
        """n tokens behind self.context others (attend_plan in attention.cu): attention, and what joins its partial results."""
        m = Memory()
        l, (hd, kv) = self.layer(m, kind), ((512, 2) if kind == 'global' else (256, 8))
        slots = max(SLOTS, self.context + n) if kind == 'global' else WINDOW + CHUNK
        group = HEADS // kv
        rows, wide = n * group, hd > 256
        few, cw, short = n <= 16, 2 if wide else 1, False
        kernel, rw, keys = 'prompt_kernelILb1ELi%dELi64E' % hd, 4, 64
        if few:
            rw, cw, keys = 1 if rows <= 16 else 2 if wide else 4, 8 if rows <= 16 else 2 * cw, 32
            short = rows <= 16 and not wide and rows * hd <= JOINED_BY_BLOCK and self.gpu['arch'] == '80'      # else launches overlap
            kernel = 'attend_kernelILb1ELi%dELi%dELi%dELb%dE' % (rw, cw, 512 if wide else 256, short)
        shared = (1 + few) * keys * (2 * hd + 16) + ((8 if rows <= 8 else 16 * rw) * cw * keys * 4 if cw > 1 else 0)
        row_tiles, most = ceil(rows, 16 * rw), ceil(slots, keys) + 1
        units = kv * row_tiles
        numbers = min(rows, 16 * rw) * hd               # of a partial result
        per_sm = self.fits(shared, 2 if rows <= 16 and not wide or not (few or wide) else 1)       # blocks on a multiprocessor
        splits, whole, grid = max(1, min(self.gpu['sms'] * per_sm // units, most, JOIN if short else most)), 0, (kv, row_tiles)
        if few: grid = (kv * splits, row_tiles)
        else:
            places, splits = self.gpu['sms'] * per_sm, 1
            rest, turns = units if units < places else units % places if per_sm == 1 else 0, 1
            one_tile = self.context + n <= keys
            for k in range(2, min(most, (1 if one_tile else 2) * places // max(rest, 1)) + 1) if rest else ():
                if ceil(rest * k, places) * splits < turns * k: splits, turns = k, ceil(rest * k, places)
            whole = units - rest if splits > 1 else units
            grid = (whole + (units - whole) * splits,)
        recorded = n <= 8                               # such a step serves every position
        apart = not short if recorded else splits > 1 and self.context + n > keys
        every = splits
        seen = self.context if kind == 'global' else min(self.context, WINDOW)
        if n <= 16: m.needed += int(seen * kv * 2 * hd)
        held = m.cold if n <= 16 else m.warm        # a sample of multiprocessors would each fetch what all of them share
        cache = self.KvCache(dtype=FP8, slots=slots, k_dim=hd, k=held(slots * kv * hd), v=held(slots * kv * hd))
        a = self.Attend(l=l, kv=cache, eps=EPS, n_heads=HEADS, window=WINDOW, n=n, pos=m.real(struct.pack('<q', self.context)), qkv=m.warm(4 * n * (HEADS + 2 * kv) * hd),
                        turn=m.warm(8 * n * hd // 2), vector=m.warm(vector_bytes(HEADS * hd, max(n, 3))) if n <= 8 else 0, vector_parts=3 if n == 1 else 1, splits=splits, unsplit=whole, joined_apart=apart, partial=m.warm(4 * every * row_tiles * kv * 16 * rw * (hd + 2)), ticket=m.zeros(4 * every * row_tiles * kv), out=m.warm(4 * n * HEADS * hd))
        flop = 4 * n * (self.context + n / 2 if kind == 'global' else min(WINDOW, self.context + n / 2)) * HEADS * hd
        self.of_attend[kind] = ceil(grid[0] * (grid + (1,))[1], 1)
        a.ahead = self.ahead // self.of_attend[kind]
        m.brings(m.ahead_of(l.o, self.of_attend[kind], a.ahead))
        out = [Launch('attend ' + kind, kernel, grid, 32 * rw * cw, shared, [('Attend', a)], m,
                      sample=10 ** 6 if n <= 16 else 4, flop=flop, **{step: per})]
        if apart: out.append(Launch('join ' + kind, '18join_attend_kernel', (ceil(numbers, JOINED_NUMBERS), units - whole), 256, 0,
                                    [('Attend', a), ('int', 16 * rw), ('int', keys), ('int', int(rows <= 16))], m, sample=10 ** 6, **{step: per}))
        if apart: out[-1].needed = 0
        return out

    # ---- one token ----

    def stream(self, name, kernel, shared, arguments, m, **per):
        """A kernel of stream.cu: one block for each multiprocessor."""
        return Launch(name, '%sILi%dE' % (kernel, self.depth + 16 * self.every_kind), (self.gpu['sms'],), 32 * STREAM_WARPS, self.ring + shared, arguments, m, **per)

    def has_many(self, m, w, blocks): m.has(m.ahead_of(w, blocks, self.ahead // blocks))
    def has(self, m, w, n=AHEAD): m.has(m.ahead_of(w, self.gpu['sms'], n))
    def brings(self, m, w, n=AHEAD): m.brings(m.ahead_of(w, self.gpu['sms'], n))
    def share(self, n, rows): return 4 * n * (rows // self.gpu['sms'] + 1)

    def embed(self, m, table, s):
        turns = self.Turns(pos=m.zeros(8))
        for kind, half in enumerate((128, 256)):
            turns.inv_freq[kind], turns.turn[kind], turns.half[kind] = m.cold(4 * half), m.warm(8 * half), half
        return Launch('embed', '12embed_kernel', (1, ceil(table.cols, THREADS)), THREADS, 0, [('Weight', table), ('pointer', m.zeros(4)), ('pointer', m.warm(4 * table.cols)), ('float', 53), ('Turns', turns)], m, **{s: 1})

    def decode(self):
        out, s = [], 'decode'
        def add(name, kernel, shared, arguments, m, per): out.append(self.stream(name, kernel, shared, arguments, m, **{s: per}))
        m = Memory()
        out.append(self.embed(m, self.weight(m, BF16 if self.every_kind else self.dense, VOCAB, HIDDEN), s))
        for kind, n in LAYERS.items():
            hd, kv = (512, 2) if kind == 'global' else (256, 8)
            m = Memory(); l = self.layer(m, kind, 'q', 'k', 'v')
            self.has(m, l.q)
            add('qkv ' + kind, '10qkv_kernel', vector_bytes(HIDDEN),
                [('Layer', l), ('Residual', self.residual(m, l, 'layer')), ('pointer', m.warm(4 * 48 * 512))], m, n)
            out += self.attend(kind, 1, s, n)
            m = Memory()
            o, gate = self.weight(m, self.dense, HIDDEN, HEADS * hd, 1), self.weight(m, self.mlp, INNER, HIDDEN)
            self.has_many(m, o, self.of_attend[kind]); self.brings(m, gate)
            add('o ' + kind, '10row_kernel', vector_bytes(HEADS * hd), [('Weight', o), ('pointer', m.warm(vector_bytes(HEADS * hd))),
                ('pointer', 0), ('int', 65536), ('pointer', m.warm(4 * HIDDEN)), ('Weight', gate)], m, n)
        m = Memory(); l = self.layer(m, 'sliding', 'gate', 'up', 'router')
        self.has(m, l.gate); self.brings(m, l.down, AHEAD_OF_DOWN)
        add('mlp', '15mlp_rows_kernel', vector_bytes(2 * HIDDEN) + self.share(2, INNER), [('Layer', l), ('Residual', self.residual(m, l, 'attention')),
            ('int', EXPERTS), ('pointer', m.warm(vector_bytes(INNER))), ('pointer', m.warm(4 * EXPERTS))], m, 30)
        m = Memory(); l = self.layer(m, 'sliding', 'down', 'expert_gate', 'expert_up')
        share, downs = HIDDEN // self.gpu['sms'] * padded(SIZE) // 2, lambda: [(x.data + share * b, min(share // 128 * 128, 4096)) for x in self.chosen for b in range(self.gpu['sms'])]
        self.has(m, l.down, AHEAD_OF_DOWN); m.brings(downs())
        add('experts up', '17experts_up_kernel', vector_bytes(HIDDEN) + vector_bytes(INNER) + choice_bytes(TOP) + self.share(2, TOP * SIZE),
            [('Layer', l), ('float', EPS), ('int', EXPERTS), ('int', TOP), ('int', SIZE), ('int', 1), ('int', 1), ('int', 0), ('pointer', m.warm(4 * HIDDEN)), ('pointer', m.warm(4 * EXPERTS)),
             ('pointer', m.warm(vector_bytes(INNER))), ('pointer', m.warm(4 * TOP)), ('pointer', m.warm(4 * TOP)), ('pointer', m.warm(vector_bytes(TOP * wide(SIZE)))), ('pointer', m.warm(4 * HIDDEN))], m, 30)
        m = Memory(); l = self.layer(m, 'sliding', 'expert_down')
        q = self.weight(m, self.dense, HEADS * 256, HIDDEN)
        m.has(downs()); self.brings(m, q)
        add('experts down', '19experts_down_kernel', vector_bytes(TOP * wide(SIZE)) + choice_bytes(TOP) + self.share(TOP, HIDDEN), [('Layer', l), ('int', EXPERTS), ('int', TOP), ('int', SIZE), ('int', 1), ('int', 0),
            ('pointer', m.warm(4 * EXPERTS)), ('pointer', 0 if self.gpu['arch'] != '80' else m.real(struct.pack('<8i', *range(TOP)))), ('pointer', m.warm(vector_bytes(TOP * wide(SIZE)))), ('pointer', m.warm(4 * HIDDEN)), ('Weight', q)], m, 30)
        out += self.head(s, 1)
        return out

    def screened(self, tiles, n, s):
        """What a screened head does after the last layer, for n tokens, with so many tiles of eight
        rows that are not ruled out; -1: in a step that takes the whole head instead."""
        out, m = [], Memory()
        cols, skip = ceil(HIDDEN, 256) * 256, tiles < 0
        chosen = sorted(random.Random(2).sample(range(VOCAB // 8), max(tiles, 0)))
        few = struct.pack('<%di' % (1 + len(chosen)), tiles, *chosen)
        must = m.cold if skip else m.must
        screen = self.Screen(
            cols=cols, q=must(VOCAB * cols), scale=must(VOCAB * cols // 16), error=must(4 * VOCAB),
            norm=must(4 * VOCAB), upper=m.warm(4 * n * VOCAB), few=m.real(few + bytes(4 * VOCAB // 8)),
            habit=m.real(struct.pack('<ii', skip, 0)), worth=VOCAB // 8)
        w, x, norm = self.weight(m, BF16, VOCAB, HIDDEN), m.warm(4 * n * HIDDEN), m.cold(4 * HIDDEN)
        logits = m.warm(4 * n * VOCAB)
        out.append(Launch('screen', '13screen_kernel', (2 * self.gpu['sms'],), THREADS, 2 * n * (cols + 64), [
            ('Weight', w), ('Screen', screen), ('pointer', x), ('int', n), ('pointer', norm), ('float', EPS),
            ('float', 30), ('pointer', logits)], m, sample=3, **{s: 1}))
        *head, count, collect = self.head(s, n, few=few)
        m = Memory()
        screen.upper, screen.few = m.warm(4 * n * VOCAB), m.zeros(4 + VOCAB // 2)
        screen.habit = m.real(struct.pack('<ii', skip, 0))
        out.append(Launch('pick', '11pick_kernel', (ceil(VOCAB // 8, THREADS),), THREADS, 0, [
            ('Screen', screen), ('int', VOCAB), ('int', n), ('pointer', m.zeros(10 ** 5 * n)),
            ('pointer', m.warm(4 * n * VOCAB))], m, **{s: 1}))
        head[-1].sample = 10 ** 6 if 0 <= tiles < 2000 else 3
        count.per[s] = 1 if skip else 2         # the first one ends at once where steps are skipped
        return out + head + [count, collect]

    def draft(self):
        """A draft of the drafter: four layers that attend to their target's keys, and a head of their own, all in BF16."""
        out, target, s = [], self.hidden, 'draft'
        self.hidden, self.inner = 1024, 8192
        def add(name, kernel, shared, arguments, m, per=1): out.append(self.stream(name, kernel, shared, arguments, m, **{s: per}))
        def rows(name, w, m, per=1, next=self.Weight(), vector=0):
            add(name, '10row_kernel', vector_bytes(w.cols), [('Weight', w), ('pointer', vector), ('pointer', m.warm(4 * w.cols)), ('int', 65536), ('pointer', m.warm(4 * w.rows)), ('Weight', next)], m, per)
        m = Memory()
        out.append(self.embed(m, self.weight(m, self.dense, VOCAB, target), s))
        m = Memory()
        rows('pre_projection', self.weight(m, BF16, self.hidden, 2 * target, 1), m)
        for kind, n in (('sliding', 3), ('global', 1)):
            hd = 512 if kind == 'global' else 256
            m = Memory(); l = self.layer(m, kind, 'q')
            self.has(m, l.q)
            add('q ' + kind, '10qkv_kernel', vector_bytes(self.hidden), [('Layer', l), ('Residual', self.residual(m, l, 'attention')), ('pointer', m.warm(4 * HEADS * hd))], m, n)
            out += self.attend(kind, 1, s, n)
            m = Memory(); l = self.layer(m, kind, 'o')
            self.has_many(m, l.o, self.of_attend[kind]); self.brings(m, l.gate)
            rows('o ' + kind, l.o, m, n, l.gate, m.warm(vector_bytes(HEADS * hd)))
            m = Memory(); l = self.layer(m, kind, 'gate', 'up')
            self.has(m, l.gate); self.brings(m, l.down, AHEAD_OF_DOWN)
            add('mlp ' + kind, '15mlp_rows_kernel', vector_bytes(self.hidden) + self.share(2, self.inner), [('Layer', l), ('Residual', self.residual(m, l, 'attention')),
                ('int', 0), ('pointer', m.warm(vector_bytes(self.inner))), ('pointer', m.warm(4))], m, n)
            m = Memory(); l = self.layer(m, kind, 'down')
            self.has(m, l.down, AHEAD_OF_DOWN)
            next = l.q if kind == 'sliding' else self.Weight()
            if kind == 'sliding': self.brings(m, next)
            rows('down ' + kind, l.down, m, n, next, m.warm(vector_bytes(self.inner)))
        m = Memory()
        post = self.weight(m, BF16, target, self.hidden, 1)
        add('post_projection', '11head_kernel', vector_bytes(self.hidden), [('Weight', post), ('Residual', self.residual(m, self.layer(m, 'sliding'), 'attention')), ('pointer', m.cold(4 * self.hidden)),
            ('float', 0), ('pointer', 0), ('pointer', m.warm(4 * target))], m)
        m = Memory(); cols = ceil(self.hidden, 1024) * 1024
        head = self.DraftHead(cols=cols, q=m.must(VOCAB * cols // 2), scale=m.must(VOCAB * cols // 16))
        out.append(Launch('head', '12draft_kernel', (2 * self.gpu['sms'],), THREADS, cols, [('DraftHead', head), ('int', VOCAB), ('pointer', m.warm(4 * self.hidden)), ('pointer', m.cold(4 * self.hidden)), ('int', self.hidden),
                   ('pointer', m.zeros(4 * 8192 + 24 + 8 * 4096)), ('pointer', m.zeros(96)), ('pointer', m.zeros(4))], m, sample=3, **{s: 1}))
        return out

    def head(self, s, n, per=1, few=b''):
        """Logits of n tokens (one: with its norm in it), and which are the largest.  few: how many tiles of eight rows are left, and which."""
        out, m = [], Memory()
        left = struct.unpack_from('<i', few)[0] if few else -1
        w, r = self.weight(m, BF16, VOCAB, HIDDEN, left * 8 / VOCAB if left >= 0 else 1), self.residual(m, self.layer(m, 'sliding'), 'layer')
        if n == 1:
            out.append(self.stream('head', '11head_kernel', vector_bytes(HIDDEN), [('Weight', w), ('Residual', r), ('pointer', m.cold(4 * HIDDEN)), ('float', 30),
                       ('pointer', m.real(few) if few else 0), ('pointer', m.warm(4 * VOCAB))], m, **{s: per}))
            out[-1].sample = 3
        elif n <= 4 and vector_bytes(HIDDEN, 12) <= self.limit + 1024 - 5120 - self.ring:       # has_few_head
            y = m.warm(vector_bytes(HIDDEN, 12))
            shares = self.gpu['sms'] // n
            if not few: self.has_many(m, w, n * shares)
            out.append(self.stream('head of %d' % n, '15few_head_kernel', vector_bytes(HIDDEN, 12), [('Weight', w), ('pointer', y), ('int', n), ('float', 30), ('pointer', m.real(few) if few else 0), ('pointer', m.warm(4 * n * VOCAB))], m, **{s: per}))
            out[-1].sample = 3
            m = Memory(); l = self.layer(m, 'sliding')
            to, next = self.VectorTo(norm=m.cold(4 * HIDDEN), to=m.warm(vector_bytes(HIDDEN, 12))), self.Weight() if few else self.weight(m, BF16, VOCAB, HIDDEN)
            if not few: m.brings(m.ahead_of(next, n * shares, self.ahead // (n * shares)))
            out.insert(0, Launch('norm before head', '15few_norm_kernel8', (n, shares), 32 * STREAM_WARPS, 4 * HIDDEN, [('Residual', self.residual(m, l, 'attention', b'', n)), ('int', HIDDEN), ('int', 3),
                       ('VectorTo', to), ('VectorTo', self.VectorTo()), ('Router', self.Router()), ('Weight', next), ('int', self.ahead // (n * shares))], m, sample=10 ** 6, **{s: per}))
        else:
            out += self.product('head of %d' % n, w, None, n, 3, m, s, per, softcap=30)
        values = random.Random(1)
        logits = struct.pack('<%df' % VOCAB, *(values.gauss(0, 3) for _ in range(VOCAB)))
        for name, kernel in (('count', '12count_kernel'), ('collect', '14collect_kernel')):
            m = Memory()
            state = bytearray(4 * 8192 + 24 + 8 * 4096)
            if name == 'collect': struct.pack_into('<I', state, 4 * 8192 + 8, 0xc1200000)      # edge: the bin of the 64th or so
            arguments = [('pointer', m.real(n * logits)), ('int', VOCAB), ('int', 64),
                         ('pointer', m.zeros(96))]
            if name == 'count': arguments.append(('pointer', 0))        # no skip
            arguments.append(('pointer', m.real(n * state)))
            if name == 'collect': arguments.append(('pointer', m.zeros(n * 2052)))
            out.append(Launch(name, kernel, (64, n), 1024, 0, arguments, m, sample=10 ** 6, **{s: per}))
        return out

    # ---- LoRA adapters ----

    def adapters(self, rank):
        """What adapters of that rank add to a step of one token: of attention and the dense MLP (lora.cu)."""
        out, parts = [], 3
        def rows(m, cols): return self.SplitRows(at=m.warm(vector_bytes(cols)), row=parts * (wide(cols) + 32), part=wide(cols) + 32, parts=parts, order=0)
        def add(name, per, cols, *heights):
            for kernel, grid, letter in ('10low_kernel', (rank * len(heights),), 'A'), ('12adapt_kernel', (1, ceil(sum(heights), THREADS)), 'B'):
                m = Memory()
                of = {'A': m.must if letter == 'A' else m.cold, 'B': m.must if letter == 'B' else m.cold}
                table = b''.join(bytes(self.GpuAdapter(a=of['A'](4 * rank * cols), b=of['B'](4 * rank * n), rank=rank, rows=n, scale=1, at=rank * i, to=sum(heights[:i])))
                                 for i, n in enumerate(heights))
                g = self.AdapterGroup(adapter=m.real(table), first=m.real(struct.pack('<2i', 0, len(heights))), n=len(heights), width=rank * len(heights), cols=cols, rows=sum(heights))
                p = self.Adapted(group=g, n=1, out=m.warm(4 * sum(heights)), pitch=sum(heights), low=m.warm(4 * g.width), width=g.width)
                setattr(p, 'in', rows(m, cols))
                out.append(Launch('%s of %s' % (letter, name), kernel + 'ILi1E', grid, THREADS, 0, [('Adapted', p)], m, sample=10 ** 6, adapters=per))
        for kind, per in LAYERS.items():
            hd, kv = (512, 2) if kind == 'global' else (256, 8)
            add('q, k, v ' + kind, per, HIDDEN, HEADS * hd, *[kv * hd] * (1 if kind == 'global' else 2))
            add('o ' + kind, per, HEADS * hd, HIDDEN)
        add('gate, up', 30, HIDDEN, INNER, INNER)
        m = Memory()
        out.append(Launch('gelu', '11gelu_kernel', (1, ceil(INNER, THREADS)), THREADS, 0, [('pointer', m.warm(8 * INNER)), ('int', INNER), ('int', INNER), ('SplitRows', rows(m, INNER))], m,
                          sample=10 ** 6, adapters=30))
        add('down', 30, INNER, HIDDEN)
        return out

    # ---- a few tokens ----

    def few(self, n, s):
        """A step of 2 to 8 tokens, with all of their logits: few.cu."""
        out, rng, sms, room = [], random.Random(n), self.gpu['sms'], self.limit + 1024 - 5120 - self.ring
        route = [rng.sample(range(EXPERTS), TOP) for _ in range(n)]
        used = len(set(e for of in route for e in of))
        score = b''.join(struct.pack('<%df' % EXPERTS, *(8 - of.index(e) * .5 if e in of else 0 for e in range(EXPERTS))) for of in route)
        tokens = self.Tokens(n=n, parts=1)
        def norms(name, end, per, many, router, rows, cols, dtype):
            m = Memory(); l = self.layer(m, 'sliding')
            next, shares = self.weight(m, dtype, rows, cols), EXPERTS // 4 if router else sms // n
            blocks = n * shares
            m.brings(m.ahead_of(next, blocks, self.ahead // blocks))
            to = [self.VectorTo(norm=m.cold(4 * HIDDEN), to=m.warm(vector_bytes(HIDDEN, n)), packed=0) for _ in range(many)] + [self.VectorTo()]
            r = self.Router(w=l.router, scale=l.router_scale, factor=1, score=m.warm(4 * n * EXPERTS)) if router else self.Router()
            out.append(Launch(name, '15few_norm_kernel8', (n, shares), 32 * STREAM_WARPS, 4 * HIDDEN, [('Residual', self.residual(m, l, end, b'', n)), ('int', HIDDEN), ('int', 1),
                       ('VectorTo', to[0]), ('VectorTo', to[1]), ('Router', r), ('Weight', next), ('int', self.ahead // blocks)], m, sample=10 ** 6, **{s: per}))
            out[-1].early = end == 'attention'
        def rows(name, weights, per, m, again=0):
            cols, columns = weights[0].cols, wide(weights[0].cols)
            while vector_bytes(columns, n) + edge_bytes(n) > room: columns -= 256
            total = sum(w.rows for w in weights)
            p = self.Rows(again=again, tokens=tokens, packed=int(weights[0].dtype == NVFP4), columns=columns, out=m.warm(4 * n * (total + again)), pitch=total + again)
            setattr(p, 'from', m.warm(vector_bytes(cols, n)))
            for i, w in enumerate(weights): p.w[i], p.at[i] = w, sum(x.rows for x in weights[:i])
            out.append(self.stream(name, '15few_rows_kernel', vector_bytes(columns, n) + edge_bytes(n), [('Rows', p)], m, **{s: per}))
        for kind, per in LAYERS.items():
            hd, kv = (512, 2) if kind == 'global' else (256, 8)
            norms('norm before qkv', 'layer', per, 1, False, HEADS * hd, HIDDEN, self.dense)
            m = Memory()
            w = [self.weight(m, self.dense, HEADS * hd, HIDDEN, 1)] + [self.weight(m, self.dense, kv * hd, HIDDEN, 1) for _ in range(1 if kind == 'global' else 2)]
            self.has_many(m, w[0], n * (sms // n))
            rows('q, k, v ' + kind, w, per, m, kv * hd if kind == 'global' else 0)
            if n * HEADS // kv > 16: out.append(self.rope(kind, n, s, per))
            out += self.attend(kind, n, s, per)
            m = Memory(); o = self.weight(m, self.dense, HIDDEN, HEADS * hd, 1)
            self.has_many(m, o, self.of_attend[kind])
            rows('o ' + kind, [o], per, m)
        norms('norms, router', 'attention', 30, 2, True, INNER, HIDDEN, self.mlp)
        most = min(n * TOP, EXPERTS) // sms + 2
        few_bytes = edge_bytes(n) + (2 + 2 * most) * 48 + most * 32 + EXPERTS * 12 + 16
        distinct = sorted(set(e for of in route for e in of))
        routes = b''.join(struct.pack('8b', *[route[t].index(e) if t < n and e in route[t] else -1 for t in range(8)]) for e in range(EXPERTS))
        routes += struct.pack('<%di' % (EXPERTS + 4), *(distinct + [0] * (EXPERTS - used)), used, 0, 0, 0)
        up = lambda dense: vector_bytes(HIDDEN, (1 + dense) * n) + few_bytes
        down = lambda dense: vector_bytes(INNER, dense * n) + vector_bytes(SIZE, most * n) + few_bytes
        together = up(1) <= room and down(1) <= room
        def mlp(name, kernel, shared, dense, experts, *read):
            m = Memory(); l = self.layer(m, 'sliding', *read, used=used)
            if 'gate' in read: self.has_many(m, l.gate, n * (EXPERTS // 4)); self.brings(m, l.down, AHEAD_OF_DOWN)
            if 'down' in read: self.has(m, l.down, AHEAD_OF_DOWN)
            f = self.FewMlp(tokens=tokens, n_experts=EXPERTS * experts, top_k=TOP, size=SIZE, dense=dense, packed=int(self.dense == NVFP4), packed_down=int(self.dense == NVFP4), packed_experts=1, packed_experts_down=1,
                            score=m.real(score), y=m.warm(vector_bytes(HIDDEN, n)), y_experts=m.warm(vector_bytes(HIDDEN, n)), sums=m.warm(8 * n * INNER), expert_sums=m.warm(8 * n * TOP * SIZE),
                            act=m.warm(vector_bytes(INNER, n)), expert_act=m.warm(vector_bytes(SIZE, n * TOP)), expert=m.warm(4 * n * TOP), weight=m.warm(4 * n * TOP), routes=m.real(routes),
                            h1=m.warm(4 * n * HIDDEN), expert_out=m.warm(4 * n * TOP * HIDDEN))
            out.append(self.stream(name, kernel, shared, [('Layer', l), ('FewMlp', f)], m, **{s: 30}))
            out[-1].early = False
        if together: mlp('mlp and experts up', '13few_up_kernel', up(1), 1, 1, 'gate', 'up', 'expert_gate', 'expert_up')
        else:
            mlp('mlp up', '13few_up_kernel', vector_bytes(HIDDEN, n) + edge_bytes(n) + 112, 1, 0, 'gate', 'up')
            m = Memory(); rows('mlp down', [self.weight(m, self.dense, HIDDEN, INNER, 1)], 30, m)
            mlp('experts up', '13few_up_kernel', up(0), 0, 1, 'expert_gate', 'expert_up')
        mlp('mlp and experts down' if together else 'experts down', '15few_down_kernel', down(together), int(together), 1, 'expert_down', *(['down'] * together))
        return out + self.head(s, n)

    def rope(self, kind, n, s, per):
        m, (hd, kv) = Memory(), (512, 2) if kind == 'global' else (256, 8)
        l, cache = self.layer(m, kind), self.KvCache(dtype=FP8, slots=WINDOW + CHUNK, k_dim=hd, k=m.warm(10 ** 8), v=m.warm(10 ** 8))
        return Launch('rope ' + kind, '16norm_rope_kernel', (ceil(HEADS + 2 * kv, WARPS), n), THREADS, 0, [('Layer', l), ('KvCache', cache), ('float', EPS), ('int', HEADS),
                      ('pointer', m.real(struct.pack('<q', self.context))), ('pointer', m.warm(4 * n * hd)), ('pointer', m.warm(4 * n * (HEADS + 2 * kv) * hd))], m, **{s: per})

    # ---- several tokens ----

    def special_product(self, name, w, up, n, parts, m, s, per, p, routed, flop, more):
        """Of hopper.cu or fp4.cu (with what rounds the activations): what hopper_product or fp4_gemm launches; [] if they do not take it."""
        take_fp4 = self.fp4_activations and w.dtype == NVFP4 and self.tokens > 32        # FP4_TOKENS in launch.cu
        if not (take_fp4 or self.wgmma and w.dtype in (BF16, NVFP4) and self.tokens > 16) or p.softcap: return []
        out, sms, width = [], self.gpu['sms'], padded(w.cols)
        row_tiles = lambda each: sum(ceil(x.rows, each) for x in (w, *more))
        if take_fp4:
            tokens = 32 * routed[0] if routed else 32 if n <= 64 else 64 if n <= 256 else 128
            tiles = routed[1] if routed else ceil(n, tokens)
            y = self.Fp4Rows(data=m.warm(n * width // 2), scale=m.warm(n * width // 16), factor=m.warm(4 * n))
            out.append(Launch('FP4: ' + name, '15quantise_kernel', (ceil(n, WARPS),), THREADS, 0, [('pointer', m.warm(2 * n * width)), ('int', n), ('int', width), ('Fp4Rows', y)], Memory(), sample=4, **{s: per}))
            out.append(Launch(name, '10fp4_kernelILi%dELb%dE' % (tokens // 32, bool(more)), (row_tiles(64 if up else 128), tiles), THREADS, 0, [('Product', p), ('Fp4Rows', y)], m, sample=4, flop=flop, **{s: per}))
        else:
            best = None
            for mr, tokens, packed, cost in HOPPER:
                if packed != (w.dtype == NVFP4) or routed and tokens != 128: continue
                rows, tiles = row_tiles(64 * mr if up else 128 * mr), routed[1] if routed else ceil(n, tokens)
                cost *= ceil(rows * tiles, sms)
                if not best or cost < best[0]: best = cost, mr, tokens, packed, rows, tiles
            _, mr, tokens, packed, rows, tiles = best
            if not routed and 2 * rows * tiles < sms: return []
            each, fixed = tokens * 128 + 128 * mr * (32 + 16 if packed else 128) + 16, 1024 + 2 * 32 * 68 * 4
            shared = fixed + min(8, (227 * 1024 - fixed) // each) * each
            maps, cluster = self.Maps(), 1 if routed else 2
            if not routed:
                box = lambda at, rows, row, box_columns, box_rows: TensorMap(data=at, pitch=row, columns=row, rows=rows, box_columns=box_columns, box_rows=box_rows, element=1, swizzle=128 * (box_columns == 128))
                maps.tokens = box(p.y, parts * n, 2 * width, 128, tokens // 2)
                for h, x in enumerate((w, up) if up else (w, *more)): maps.rows[h] = box(x.data, x.rows, width // 2 if packed else 2 * width, 32 if packed else 128, 64 * mr)
            out.append(Launch(name, '13hopper_kernelILi%dELi%dELb%dELb%dELb%dE' % (mr, tokens, packed, not routed, bool(more)), (min(ceil(rows * tiles, cluster), sms // cluster) * cluster,), 384, shared,
                              [('Product', p), ('Maps', maps), ('int', parts), ('int', rows), ('int', tiles)], m, sample=4, flop=flop, **{s: per}))
            out[-1].cluster = cluster
        for launch in out: launch.suffix = 'a'
        out[-1].in_tiles, out[-1].reuse = True, tiles
        return out

    def product(self, name, w, up, n, parts, m, s, per, softcap=0, routed=None, more=()):
        """dense and gemm in launch.cu.  routed: (mt, tiles, their bytes, list or None): w and up are tables of experts.  more: further matrices.  -> [launches]"""
        row_tiles = sum(ceil(x.rows, 64 if up else 128) for x in (w, *more))
        sms, columns = self.gpu['sms'], w.cols
        if routed:
            mt, n_tiles, tile_list, places = routed
            reuse = len(tile_list) // 12 / len({e for e, _, _ in struct.iter_unpack('<iii', tile_list)})       # tiles of an expert
        else:
            cost = lambda mt: ceil(row_tiles * ceil(n, 32 * mt), sms) * (2 * mt + 1)
            mt = 1 if n <= 32 or n <= 64 and 8 * row_tiles < sms else 2 if n <= 64 or parts > 1 else min((4, 3, 2), key=cost)
            reuse = n_tiles = ceil(n, 32 * mt)
        all_rows = sum(x.rows for x in (w, *more))
        size = stage_bytes(w.dtype, mt, parts)
        shared = min(4, GEMM_SHARED // size) * size
        fit = self.fits(shared, 2 if mt == 1 else 1) * sms // (row_tiles * n_tiles)
        steps = each = padded(columns) // 64
        if not routed and fit > 1: each = max(ceil(steps, fit), 4)
        shares = ceil(steps, each)
        p = self.Product(n=n, n_act=n, steps=each, pitch=all_rows, softcap=softcap, top_k=TOP, y=m.warm(2 * parts * n * padded(w.cols)), out=m.warm(4 * n * all_rows), act=m.warm(2 * parts * n * padded(w.rows)),
                         partial=m.warm(16 * 4 * mt * THREADS * shares * row_tiles * n_tiles), ticket=m.zeros(4 * row_tiles * n_tiles))
        if routed:
            p.expert_w = self.table[0]
            if up: p.expert_up = self.table[1]
            p.tile, p.n_tiles = m.real(tile_list), m.real(struct.pack('<i', len(tile_list) // 12))
            if places: p.list = m.real(places)
        else:
            p.w = w
            if up: p.up = up
            for i, x in enumerate(more): p.more[i] = x
        flop = 2 * n * all_rows * w.cols * (2 if up else 1) * (TOP if up and routed else 1)
        special = self.special_product(name, w, up, n, parts, m, s, per, p, routed, flop, more)
        if special and routed: special[-1].reuse = reuse
        if special: return special
        # Blocks that share columns are simulated in full: only the last one of a tile adds up their sums, and of a sample none is the last.
        kernel = 'gemm_kernelILi%dELi%dELi%dE' % (w.dtype == NVFP4, mt, parts)
        launch = Launch(name, kernel, (row_tiles, n_tiles, shares), THREADS, shared, [('Product', p)], m, sample=10 ** 6 if shares > 1 else 4 if routed else 2, flop=flop, **{s: per})
        launch.in_tiles, launch.reuse = True, reuse
        return [launch]


    def several(self, n, s):
        """A step of n tokens of a prompt, with the logits of the last."""
        self.tokens, out, rng = n, [], random.Random(n)
        route = [sorted(rng.sample(range(EXPERTS), TOP)) for _ in range(n)]
        pairs = n * TOP
        by_expert = [[t * TOP + k for t in range(n) for k in range(TOP) if route[t][k] == e] for e in range(EXPERTS)]
        order = [p for e in by_expert for p in e]
        place = [0] * pairs
        for at, pair in enumerate(order): place[pair] = at
        used = sum(1 for e in by_expert if e)
        mt = 4 if self.wgmma and n > 16 or pairs // EXPERTS > 48 else 2 if pairs // EXPERTS > 12 else 1
        each, tile_list, first = 32 * mt, b'', 0
        for e, of in enumerate(by_expert):
            for at in range(0, len(of), each): tile_list += struct.pack('<iii', e, first + at, min(each, len(of) - at))
            first += len(of)
        max_tiles = min(pairs // each + EXPERTS, pairs)
        ints = lambda x: struct.pack('<%di' % len(x), *x)
        def norms(name, end, per, to, m, brings):
            l, none, (next, regions, _) = self.layer(m, 'sliding'), self.NormTo(), brings
            m.brings(regions)
            t = [self.NormTo(norm=m.cold(4 * HIDDEN), factor=1, parts=p, to=m.warm(2 * p * n * HIDDEN)) for p in to] + [none] * (3 - len(to))
            out.append(Launch(name, '11norm_kernel8', (n,), 32 * STREAM_WARPS, 0, [('Residual', self.residual(m, l, end, ints(place), n)), ('int', HIDDEN)] + [('NormTo', x) for x in t] + [('Next', next)], m, **{s: per}))
        def mlp(m): return [self.weight(m, *of) for of in ((BF16, EXPERTS, HIDDEN), (self.mlp, INNER, HIDDEN), (self.mlp, INNER, HIDDEN), (self.mlp, HIDDEN, INNER))]
        def brought(m, by):
            """What the norms or the sort bring of them -> see next_of."""
            start, bytes, blocks = (0, self.ahead_of_mlp, n) if by == 'norms' else (self.ahead_of_mlp, self.gpu['l2_size'] // 8 * 3, EXPERTS)
            return m.next_of(mlp(m), start, bytes, blocks, self.Next)
        def reads(m, which, by):
            """Memory in which a launch reads some of router, gate, up, down.  by: the last launch before it that has brought any."""
            w, last = mlp(m), brought(Memory(), by)
            ends = [x.data for x in w[1:]] + [2 ** 63]
            regions = [x for k in ('norms', 'sort')[:1 + (by == 'sort')] for x in brought(Memory(), k)[1]]
            for k in which:
                its = int(w[k].rows * padded(w[k].cols) * BYTES[w[k].dtype])
                m.needed += its * 9 // 8 if w[k].dtype == NVFP4 else its
                m.has([(a, n) for a, n in regions if w[k].data <= a < ends[k]])
            m.behind = sum(n for a, n in last[1] if a >= ends[which[-1]]) + (by == 'sort') * last[2]
            return [w[k] for k in which]
        for kind, per in LAYERS.items():
            hd, kv = (512, 2) if kind == 'global' else (256, 8)
            m = Memory()
            norms('norms before qkv', 'layer', per, [1], m, m.next_of([self.weight(m, self.dense, HEADS * hd, HIDDEN)], 0, self.ahead, n, self.Next))
            m = Memory()
            q, k = self.weight(m, self.dense, HEADS * hd, HIDDEN, 1), self.weight(m, self.dense, kv * hd, HIDDEN, 1)
            m.has(m.next_of([q], 0, self.ahead, n, self.Next)[1])
            v = k if kind == 'global' else self.weight(m, self.dense, kv * hd, HIDDEN, 1)
            out += self.product('q, k, v ' + kind, q, None, n, 1, m, s, per, more=(k, v))
            if n * HEADS // kv > 16: out.append(self.rope(kind, n, s, per))
            out += self.attend(kind, n, s, per)
            m = Memory()
            out.append(Launch('parts ' + kind, '12parts_kernel', (n, ceil(HEADS * hd, 4 * THREADS)), THREADS, 0, [('pointer', m.warm(4 * n * HEADS * hd)), ('int', HEADS * hd), ('int', HEADS * hd), ('int', HEADS * hd), ('int', 1),
                       ('pointer', m.warm(2 * n * HEADS * hd))], m, **{s: per}))
            m = Memory()
            o = self.weight(m, self.dense, HIDDEN, HEADS * hd, 1)
            self.has_many(m, o, self.of_attend[kind])
            out += self.product('o ' + kind, o, None, n, 1, m, s, per)
        m = Memory(); norms('norms before mlp', 'attention', 30, [1, 1, 3], m, brought(m, 'norms'))
        m = Memory(); out += self.product('router', *reads(m, [0], 'norms'), None, n, 3, m, s, 30)
        m = Memory(); out.append(Launch('route', '12route_kernel', (ceil(n, WARPS),), THREADS, 0, [('int', n), ('int', EXPERTS), ('int', TOP), ('pointer', m.warm(4 * n * EXPERTS)), ('pointer', m.cold(4 * EXPERTS)),
                                        ('pointer', m.warm(4 * pairs)), ('pointer', m.warm(4 * pairs))], m, **{s: 30}))
        m = Memory(); z = lambda k: ('pointer', m.zeros(4 * k))
        next, regions, rest = brought(m, 'sort')
        first = min(rest // (2 * EXPERTS), SIZE * padded(HIDDEN) // 2) // 128 * 128      # of each chosen expert's gate and up
        lists = [self.experts(m, SIZE, HIDDEN, 0) for _ in range(2)]
        m.ahead += brought(Memory(), 'norms')[1]
        m.brings(regions + [(w.data, first) for table in self.of_experts[-2:] for e, w in enumerate(table) if by_expert[e]])
        out.append(Launch('sort', '11sort_kernel', (EXPERTS,), THREADS, 0, [('int', pairs), ('int', each), ('pointer', m.real(ints([e for t in route for e in t]))), z(pairs), z(pairs), z(EXPERTS), z(EXPERTS), z(1),
                          z(3 * max_tiles), z(1)] + [('pointer', x) for x in lists] + [('int', rest // (2 * EXPERTS)), ('Next', next)], m, sample=10 ** 6, **{s: 30}))
        m = Memory(); out += self.product('gate, up', *reads(m, [1, 2], 'sort'), n, 1, m, s, 30)
        m = Memory(); out += self.product('down', *reads(m, [3], 'sort'), None, n, 1, m, s, 30)
        m = Memory(); w = self.Weight(dtype=NVFP4, rows=SIZE, cols=HIDDEN)
        self.table = [self.experts(m, SIZE, HIDDEN, 1, used), self.experts(m, SIZE, HIDDEN, 1, used)]
        for table in self.of_experts[-2:]: m.has([(w.data, first) for e, w in enumerate(table) if by_expert[e]])
        out += self.product('experts gate, up', w, w, n, 1, m, s, 30, routed=(mt, max_tiles, tile_list, ints(order)))
        m = Memory(); self.table = [self.experts(m, HIDDEN, SIZE, 1, used)]
        out += self.product('experts down', self.Weight(dtype=NVFP4, rows=HIDDEN, cols=SIZE), None, pairs, 1, m, s, 30, routed=(mt, max_tiles, tile_list, None))
        return out + self.head(s, 1)
