/* sim.cpp - runs one launch of a kernel, given as SASS, on a model of some multiprocessors of a GPU.  Input: a job that gpusim
 * writes (see `main`); output: one line "key value ...".  All 32 lanes of a warp compute, so addresses, conflicts and branches are
 * the kernel's own; tensor cores and 16-bit arithmetic compute nothing (no branch of the kernels depends on it). */
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <queue>
#include <string>
#include <unordered_map>
#include <vector>
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t i64;
#define LANES for (int i = 0; i < 32; i++)
static const u64 PARAM = 0x7000000000ull, COLD = 0x100000000000ull, WARM = 0x300000000000ull;  /* kernel parameters; from DRAM; in L2 */
static const i64 NEVER = (i64)1 << 60;

/* ---- the program ---- */
enum { NONE, REG, PRED, IMM, CONST, MEM, SPECIAL, BARRIER };            /* uniform registers are REG 256 …, predicates PRED 8 … */
struct Operand { int kind, idx, ureg, flags, scale; i64 imm; };         /* flags: 1 -, 2 ~ or !, 4 | |, 8 address or register of 64 bits */
enum Class { ALU, FMA, IMADC, HALF, MUFUC, MMA, CTL, LSU, UNIFORM, CONSTANT, FP64 };
struct Ins {
    std::string op;
    int code, cls, stall, wb, rb, wait, guard, guard_not, n, bytes, uniform;
    Operand o[10];
    bool m64, x, hi, u32_, wide, ex, left, s32, w, keep, s8, s16, divert, whole_warp, arrive, f32;
    double mma_time;
    int cmp, join, columns;
};
#define CODES(X) X(NOP) X(ERRBAR) X(CCTL) X(CGAERRBAR) X(MEMBAR) X(FENCE) X(YIELD) X(PREEXIT) X(BMOV) X(ENDCOLLECTIVE) X(DEPBAR) X(LDGDEPBAR) X(ACQBULK) \
    X(UTMALDG) X(UBLKCP) X(UTMACCTL) X(UCGABAR_ARV) X(UCGABAR_WAIT) X(SYNCS) X(ARRIVES) X(WARPGROUP) X(HGMMA) X(USETMAXREG) X(WARPSYNC) X(BSSY) X(BSYNC) X(BREAK) X(BRA) X(BRX) X(CALL) X(RET) X(EXIT) X(BAR) X(IADD3) X(VIADD) X(IADD) X(IMAD) X(IABS) X(IMNMX) X(VIMNMX) X(VIMNMX3) \
    X(VIADDMNMX) X(LEA) X(LOP3) X(SHF) X(PRMT) X(SEL) X(FSEL) X(ISETP) X(FSETP) X(PLOP3) X(MOV) X(P2R) X(R2P) X(POPC) X(FLO) X(CS2R) X(S2R) X(FADD) X(FMUL) \
    X(FFMA) X(FMNMX) X(FCHK) X(MUFU) X(I2F) X(I2FP) X(F2I) X(F2F) X(F2FP) X(HADD2) X(HMUL2) X(HFMA2) X(HMMA) X(IMMA) X(QMMA) X(OMMA) X(LDG) X(LD) X(LDS) X(LDC) \
    X(LDSM) X(LDGSTS) X(LDL) X(STL) X(STG) X(ST) X(STS) X(ATOMG) X(ATOM) X(ATOMS) X(RED) X(REDG) X(SHFL) X(VOTE) X(R2UR) X(REDUX) X(IDP) X(ELECT) X(DMUL) X(DADD) X(DFMA) \
    X(HSETP2) X(HMNMX2) X(I2I) X(I2IP) X(BREV) X(NANOSLEEP) X(LDCU) X(SGXT) X(BMSK)
enum Code {
#define X(c) c,
    CODES(X)
#undef X
    UNKNOWN
};
static const char *code_name[] = {
#define X(c) #c,
    CODES(X)
#undef X
};
static std::vector<Ins> prog;
static std::map<std::string, int> unknown;

static void prepare(Ins &p) {
    std::string b = p.op.substr(0, p.op.find('.'));
    auto has = [&](const char *s) { return (p.op + ".").find(std::string(s) + ".") != std::string::npos; };
    p.uniform = 0;
    if (b == "ULDC" || b == "LDCU") b = "LDC", p.uniform = 1;
    else if (b == "S2UR") b = "S2R", p.uniform = 1;
    else if (b == "VOTEU") b = "VOTE", p.uniform = 1;
    else if (b == "CREDUX") b = "REDUX";
    else if (b == "BRXU") b = "BRX";
    else if (b == "UP2UR") b = "P2R", p.uniform = 1;
    else if (b == "R2UR" || b == "REDUX") {}
    else if (b[0] == 'U' && b != "USETMAXREG" && b.compare(0, 4, "UTMA") && b.compare(0, 4, "UBLK") && b.compare(0, 4, "UCGA")) b = b.substr(1), p.uniform = 1;
    p.code = UNKNOWN;
    for (int i = 0; i < UNKNOWN; i++) if (b == code_name[i]) p.code = i;
    if (p.code == UTMALDG && !has(".2D") || p.code == UBLKCP && !has(".S.G")) p.code = UNKNOWN;
    if (p.code == UNKNOWN) unknown[p.op]++;
    p.m64 = has(".64"); p.x = has(".X"); p.hi = has(".HI"); p.u32_ = has(".U32") || has(".U64"); p.wide = has(".WIDE"); p.ex = has(".EX");
    p.left = has(".L"); p.s32 = has(".S32") || has(".S64"); p.w = has(".W");
    p.keep = !has(".NA") && p.op.find("STRONG") == std::string::npos && !has(".BYPASS"); p.s8 = has(".S8"); p.s16 = has(".S16"); p.divert = has(".DIV") || has(".CONV"); p.whole_warp = has(".U");
    p.arrive = has(".ARV"); p.f32 = has(".F32"); p.mma_time = has(".1688") || (b == "IMMA" && has(".16816")) ? .5 : 1;
    p.columns = 0; if (b == "HGMMA") p.columns = atoi(p.op.c_str() + p.op.find('x') + 1);      /* HGMMA.64x128x16: 128 */
    p.bytes = has(".128") || has(".MT88.4") || has(".M88.4") ? 16 : has(".64") ? 8 : has(".U8") || has(".S8") ? 1 : has(".U16") || has(".S16") ? 2 : 4;
    p.cmp = has(".EQ") || has(".EQU") ? 0 : has(".NE") || has(".NEU") ? 1 : has(".LT") || has(".LTU") ? 2 : has(".LE") || has(".LEU") ? 3 : has(".GT") || has(".GTU") ? 4 : 5;
    p.join = has(".XOR") ? 2 : has(".OR") ? 1 : 0;
    static const std::map<int, int> cls = {{FADD, FMA}, {FMUL, FMA}, {FFMA, FMA}, {IMAD, IMADC}, {IDP, IMADC}, {HADD2, HALF}, {HMUL2, HALF}, {HFMA2, HALF}, {MUFU, MUFUC}, {FCHK, MUFUC},
        {I2F, MUFUC}, {F2I, MUFUC}, {F2F, MUFUC}, {POPC, MUFUC}, {FLO, MUFUC}, {BREV, MUFUC}, {HMMA, MMA}, {IMMA, MMA}, {QMMA, MMA}, {OMMA, MMA}, {DMUL, FP64}, {DADD, FP64}, {DFMA, FP64}};
    auto c = cls.find(p.code);
    p.cls = p.code <= BAR ? CTL : p.code == LDC ? CONSTANT : p.uniform ? UNIFORM : c != cls.end() ? c->second : p.code >= LDG && p.code <= SHFL ? LSU : ALU;
}

/* ---- the GPU, the launch, memory ---- */
#define CONSTANTS(X) X(fp4_interval) X(wgmma_interval) X(alu_interval) X(bandwidth) X(block_start_us) X(branch) X(cluster_latency) X(dram_latency) X(efficiency) X(fma_interval) X(ghz) X(half_interval) X(imad_interval) X(l1_bytes) X(l1_latency) X(l2_bytes) X(l2_latency) X(lead_us) X(mma_interval) X(mma_latency) X(mufu_interval) X(shared_latency) X(sms) X(tma_interval) X(tma_latency)
struct Gpu {                                    /* the constants of gpus.py */
#define X(c) double c;
    CONSTANTS(X)
#undef X
};
static Gpu gpu;
static void set_constant(const std::string &name, double v) {
#define X(c) if (name == #c) gpu.c = v;
    CONSTANTS(X)
#undef X
}
static std::vector<uint8_t> bank0, bank2;
struct Buffer { u64 base; std::vector<uint8_t> data; };                 /* memory with contents; everything else reads as 1.0 */
static std::vector<Buffer> buffers;
static i64 now;
static uint8_t *real(u64 a) {
    static size_t last = 0;
    if (last < buffers.size() && a - buffers[last].base < buffers[last].data.size()) return &buffers[last].data[a - buffers[last].base];
    size_t lo = 0, hi = buffers.size();
    while (lo < hi) { size_t m = (lo + hi) / 2; if (buffers[m].base <= a) lo = m + 1; else hi = m; }
    if (!lo || a - buffers[lo - 1].base >= buffers[lo - 1].data.size()) return NULL;
    last = lo - 1;
    return &buffers[last].data[a - buffers[last].base];
}
static u32 get(u64 a, int bytes) {
    u32 v = 0;
    if (a - PARAM < bank0.size()) memcpy(&v, &bank0[a - PARAM], bytes);
    else if (uint8_t *p = real(a)) memcpy(&v, p, bytes);
    else v = bytes == 4 ? 0x3f800000 : bytes == 2 ? 0x3f80 : 0x38;
    return v;
}
static void put(u64 a, u32 v, int bytes) { if (uint8_t *p = real(a)) memcpy(p, &v, bytes); }

struct Split { int pc; u32 mask; int wait; };   /* lanes that are at one place; wait: -1, or the barrier register (99: the block's) */
struct Mbarrier { int count, missing, bytes, phase; i64 last, ended; };  /* arrivals of a phase; arrivals and bytes still missing, phases that have ended; the last arrival, the end of the last phase */
struct Block; struct SM;
struct Cluster { std::vector<Block *> block; int warps, arrived, phase; i64 ended; };    /* its blocks (NULL: has ended), their warps; its barrier, as of Mbarrier */
struct Block { int id[3], arrived[16], left, rank; std::vector<uint8_t> shared; std::map<u32, Mbarrier> mbarrier; SM *sm; std::shared_ptr<Cluster> cluster; };
struct Warp {
    u32 R[513][32];                             /* 255, 511: zero; 512: thrown away */
    u32 P[16], B[17];                           /* predicates, a bit a lane; barrier registers */
    std::vector<Split> split;
    int cur, index, at_barrier, done, cluster_phase;   /* cluster_phase: which its barrier had when the warp arrived there */
    Block *block;
    i64 next, score[6], first_mma, ready_group, copied;     /* copied: when all cp.async so far have ended */
    bool by_memory[6];
    std::deque<i64> groups, mma_groups;         /* when each group of cp.async, of wgmma has ended */
    std::vector<u32> local;
};
struct SM {
    std::vector<Warp *> warps;
    double lsu, l2;
    std::unordered_map<u64, i64> l1;
    std::deque<u64> l1_order;
    double pipe[4][8];
    int last[4];
    i64 sleep[4];
    std::deque<int> queue;
    int resident;
    i64 finished;
    double dram, issued;
    double tma;                                 /* when the TMA unit has asked for all lines so far */
    std::map<u64, i64> maps;                    /* tensor map -> when the TMA unit has it */
    std::priority_queue<std::pair<i64, double>, std::vector<std::pair<i64, double>>, std::greater<std::pair<i64, double>>> writes;     /* lines of bulk copies on their way: when, turns of the shared memory */
};
static int block_dim[3], grid[3];

/* ---- lanes ---- */
static float f_(u32 u) { float f; memcpy(&f, &u, 4); return f; }
static u32 b_(float f) { u32 u; memcpy(&u, &f, 4); return u; }
static u32 const_at(u64 a, int bank) {
    const std::vector<uint8_t> &b = bank == 0 ? bank0 : bank2;
    u32 v = 0;
    if ((bank == 0 || bank == 2) && a + 4 <= b.size()) memcpy(&v, &b[a], 4);
    return v;
}
static void value(Warp &w, const Operand &o, u32 v[32], bool fl, int word = 0) {
    if (o.kind == REG) memcpy(v, w.R[(o.idx & 255) == 255 ? o.idx : o.idx + word], 128);
    else if (o.kind == IMM) LANES v[i] = word ? (u32)(o.imm < 0 ? -1 : o.imm >> 32) : (u32)o.imm;
    else if (o.kind == CONST) { u32 *r = w.R[o.idx], *u = w.R[o.ureg]; LANES v[i] = const_at((u32)(r[i] + u[i] + o.imm) + 4 * word, o.scale); }
    else if (o.kind == PRED) LANES v[i] = w.P[o.idx] >> i & 1;
    else LANES v[i] = 0;
    if (fl) {
        if (o.flags & 4) LANES v[i] &= 0x7fffffff;
        if (o.flags & 1) LANES v[i] ^= 0x80000000;
    } else if (o.flags & 2) LANES v[i] = ~v[i];
    else if (o.flags & 1 && o.kind != PRED && !word) LANES v[i] = 0u - v[i];
}
static void value64(Warp &w, const Operand &o, u64 v[32]) {
    u32 lo[32], hi[32];
    Operand p = o;
    p.flags &= ~3;
    value(w, p, lo, 0);
    value(w, p, hi, 0, 1);
    LANES v[i] = lo[i] | (u64)hi[i] << 32;
    if (o.flags & 2) LANES v[i] = ~v[i];
    if (o.flags & 1) LANES v[i] = 0 - v[i];
}
static u32 pred(Warp &w, const Operand &o) { return o.flags & 2 ? ~w.P[o.idx] : w.P[o.idx]; }
static void set(Warp &w, const Operand &o, const u32 v[32], u32 m, int word = 0) {
    if (o.kind != REG || (o.idx & 255) == 255) return;
    u32 *r = w.R[o.idx + word];
    LANES if (m >> i & 1) r[i] = v[i];
}
static void set_pred(Warp &w, const Operand &o, u32 v, u32 m) { if (o.kind == PRED && (o.idx & 7) != 7) w.P[o.idx] = (w.P[o.idx] & ~m) | (v & m); }
template <class T> static u32 compare(int c, const T *a, const T *b) {
    u32 r = 0;
    LANES r |= (u32)(c == 0 ? a[i] == b[i] : c == 1 ? a[i] != b[i] : c == 2 ? a[i] < b[i] : c == 3 ? a[i] <= b[i] : c == 4 ? a[i] > b[i] : a[i] >= b[i]) << i;
    return r;
}
static u32 joined(int how, u32 a, u32 b) { return how == 0 ? a & b : how == 1 ? a | b : a ^ b; }
static u32 lut3(u32 a, u32 b, u32 c, int t) {
    u32 r = 0;
    for (int k = 0; k < 8; k++) if (t >> k & 1) r |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
    return r;
}
static void addresses(Warp &w, const Operand &o, u64 a[32]) {
    u32 *r = w.R[o.idx], *rh = w.R[o.idx == 255 || o.idx == 511 ? o.idx : o.idx + 1], *u = w.R[o.ureg], *uh = w.R[o.ureg == 511 ? 511 : o.ureg + 1];
    bool wide = o.flags & 8;
    LANES a[i] = (u64)((wide && o.idx != 255 ? r[i] | (u64)rh[i] << 32 : (u64)r[i] * o.scale) + (o.ureg == 511 ? 0 : wide && o.idx == 255 ? u[i] | (u64)uh[i] << 32 : (u64)u[i])) + o.imm;
    if (!wide) LANES a[i] = (u32)a[i];
}
static u32 special(Warp &w, const std::string &s, int lane) {
    int t = w.index * 32 + lane;
    if (s == "SR_TID.X") return t % block_dim[0];
    if (s == "SR_TID.Y") return t / block_dim[0] % block_dim[1];
    if (s == "SR_TID.Z") return t / block_dim[0] / block_dim[1];
    if (s == "SR_CTAID.X") return w.block->id[0];
    if (s == "SR_CTAID.Y") return w.block->id[1];
    if (s == "SR_CTAID.Z") return w.block->id[2];
    if (s == "SR_LANEID") return lane;
    if (s == "SR_LTMASK") return (1u << lane) - 1;
    if (s == "SR_EQMASK") return 1u << lane;
    if (s == "SR_CLOCKLO") return (u32)now;
    if (s == "SR_CgaCtaId") return w.block->rank;
    return 0;
}
static std::vector<std::string> specials;

/* How many turns the shared memory's 32 banks need; lanes come in groups of 128 bytes. */
static int conflicts(const u64 a[32], u32 m, int bytes) {
    int per = bytes >= 16 ? 8 : bytes == 8 ? 16 : 32, all = 0;
    for (int g = 0; g < 32; g += per) {
        u32 seen[32][32]; int n[32] = {0}, most = 0;
        for (int i = g; i < g + per; i++) if (m >> i & 1)
            for (int k = 0; k < std::max(4, bytes); k += 4) {
                u32 word = (u32)(a[i] + k) / 4, b = word % 32; int j = 0;
                while (j < n[b] && seen[b][j] != word) j++;
                if (j == n[b]) seen[b][n[b]++] = word;
                most = std::max(most, n[b]);
            }
        all += most;
    }
    return std::max(all, 1);
}

/* ---- the memory system's time ---- */
static double dram_free, dram_rate;
static std::vector<u64> fetched;                /* a bit for each sector of 32 bytes of COLD */
static std::unordered_map<u64, i64> under_way;  /* sector -> when it comes */
static size_t l1_lines, most_under_way = 200000;
static i64 load_time(SM &s, double t, const u64 a[32], u32 m, int bytes, bool keep, bool store, bool *memory) {
    u64 sector[128]; int n = 0;
    LANES if (m >> i & 1) for (u64 q = a[i] >> 5; q <= (a[i] + bytes - 1) >> 5; q++) {
        int j = n; while (j > 0 && j > n - 34 && sector[j - 1] != q) j--;
        if (!(j > 0 && sector[j - 1] == q) && n < 128) sector[n++] = q;
    }
    i64 ready = (i64)t + (i64)gpu.l1_latency;
    for (int j = 0; j < n; j++) {
        u64 at = sector[j] << 5;
        if (at - PARAM < 65536) continue;
        if (store) {                    /* a whole sector that is written is in the L2 */
            s.l2 = std::max(s.l2, t) + 32 / gpu.l2_bytes;
            int written = 0; LANES if (m >> i & 1) for (int k = 0; k < bytes; k++) written += (a[i] + k) >> 5 == sector[j];
            const u64 bit = (at - COLD) >> 5;
            if (written >= 32 && at >= COLD && at < WARM) { if (bit / 64 >= fetched.size()) fetched.resize(bit / 64 + (1 << 20)); fetched[bit / 64] |= (u64)1 << bit % 64; }
            continue;
        }
        auto hit = s.l1.find(sector[j]);
        if (keep && hit != s.l1.end()) { ready = std::max(ready, hit->second); continue; }
        s.l2 = std::max(s.l2, t) + 32 / gpu.l2_bytes;
        i64 r = (i64)s.l2 + (i64)gpu.l2_latency;
        if (at >= COLD && at < WARM) {
            u64 bit = (at - COLD) >> 5;
            if (bit / 64 >= fetched.size()) fetched.resize(bit / 64 + (1 << 20));
            if (!(fetched[bit / 64] >> bit % 64 & 1)) {
                fetched[bit / 64] |= (u64)1 << bit % 64;
                dram_free = std::max(dram_free, t) + 32 / dram_rate;
                s.dram += 32;
                r = std::max((i64)s.l2, (i64)dram_free) + (i64)gpu.dram_latency;
                under_way[sector[j]] = r;
                if (under_way.size() > most_under_way) {
                    for (auto k = under_way.begin(); k != under_way.end();) k = k->second < now ? under_way.erase(k) : ++k;
                    most_under_way = std::max((size_t)200000, 2 * under_way.size());
                }
            } else { auto u = under_way.find(sector[j]); if (u != under_way.end()) r = std::max(r, u->second); }
        }
        ready = std::max(ready, r);
        if (keep) {
            s.l1[sector[j]] = r; s.l1_order.push_back(sector[j]);
            if (s.l1_order.size() > l1_lines * 4) { s.l1.erase(s.l1_order.front()); s.l1_order.pop_front(); }
        }
    }
    *memory = ready > t + 2 * gpu.l1_latency;
    return ready;
}

static double lsu_busy;
static void land(SM &s) {                       /* lines of bulk copies that have come take the shared memory's turns */
    for (; !s.writes.empty() && s.writes.top().first <= now; s.writes.pop()) s.lsu = std::max(s.lsu, (double)s.writes.top().first) + s.writes.top().second, lsu_busy += s.writes.top().second;
}

/* ---- mbarriers, clusters, bulk copies ---- */
/* n arrivals at the mbarrier at `at` of block b, and so many bytes that are expected (negative: that have come). */
static void arrive(Block *b, u32 at, int n, int bytes, i64 when) {
    Mbarrier &x = b->mbarrier[at & 0xffffff];
    x.last = std::max(x.last, when); x.missing -= n; x.bytes += bytes;
    if (x.missing <= 0 && !x.bytes) x.missing += x.count, x.phase++, x.ended = x.last;
}
static Block *of_rank(Block *b, u32 rank) {     /* a block of b's cluster; an address of shared memory has its number in bits 24 ... */
    Cluster &c = *b->cluster;
    Block *x = c.block[c.block.size() > 1 ? rank % c.block.size() : 0];
    if (!x) unknown["to-a-block-that-has-ended"]++;
    return x;
}
static void cluster_arrive(Cluster &c, int n) { c.arrived += n; if (c.warps && c.arrived >= c.warps) c.arrived = 0, c.phase++, c.ended = now + (i64)gpu.cluster_latency; }

struct Line { u64 from; u32 to; int bytes; };   /* of a bulk copy: at most 128 bytes, within the box's row; bytes < 0: so many zeros, behind the matrix's edge */
/* A bulk copy of warp w: lines are asked for one after the other, come as other loads do, of a multicast one half through each multiprocessor, and are written into the
 * shared memory of each block of `mask` (bits; 0: of the block that `to` is in).  barrier: told of `bytes` there. */
static void bulk_copy(SM &s, Warp &w, const std::vector<Line> &lines, u32 to, u32 barrier, int bytes, u32 mask, i64 start, int swizzle) {
    std::vector<Block *> blocks;
    for (u32 r = 0; r < w.block->cluster->block.size(); r++) if (mask >> r & 1) if (Block *b = of_rank(w.block, r)) blocks.push_back(b);
    if (!mask) if (Block *b = of_rank(w.block, to >> 24)) blocks.push_back(b);
    if (blocks.empty()) return;
    i64 there = start; size_t i = 0;
    for (const Line &l : lines) {
        s.tma = std::max(s.tma, (double)start) + gpu.tma_interval;
        u64 a[32] = {l.from}; bool memory; const int n = std::abs(l.bytes);
        const i64 ready = (i64)gpu.tma_latency + (l.bytes < 0 ? (i64)s.tma : load_time(*blocks[i++ % blocks.size()]->sm, s.tma, a, 1, n, false, false, &memory));
        there = std::max(there, ready);
        for (Block *b : blocks) {
            b->sm->writes.push({ready, n / 128.});
            const bool known = l.bytes > 0 && real(l.from);
            for (int k = 0; k < n; k += 4) { u32 v = l.bytes < 0 ? 0 : known ? get(l.from + k, 4) : 0x3f800000, at = l.to + k; if (swizzle) at ^= (at >> 7 & 7) << 4; memcpy(&b->shared[at & 0x3ffff], &v, 4); }
        }
    }
    for (Block *b : blocks) arrive(b, barrier, 0, -bytes, there);
}
/* The tensor map at `map`, as cases.py writes it (TensorMap): the box at column x, row y. */
static void tensor_copy(SM &s, Warp &w, u64 map, u32 to, u32 barrier, int x, int y, u32 mask) {
    auto field = [&](int k) { return get(map + 4 * k, 4); };
    const u64 data = field(0) | (u64)field(1) << 32, pitch = field(2) | (u64)field(3) << 32;
    const int columns = field(4), rows = field(5), box_columns = field(6), box_rows = field(7), element = field(8), width = box_columns * element;
    std::vector<Line> lines;
    for (int r = 0; r < box_rows; r++) for (int k = 0; k < width; k += 128) {
        int n = std::min(128, width - k), in = y + r < 0 || y + r >= rows || x < 0 ? 0 : std::min(n, std::max(0, (columns - x) * element - k));
        if (in) lines.push_back({data + (y + r) * pitch + (i64)x * element + k, to + r * width + k, in});
        if (n > in) lines.push_back({0, to + r * width + k + in, in - n});
    }
    auto have = s.maps.insert({map, now + (i64)gpu.l2_latency}).first;
    bulk_copy(s, w, lines, to, barrier, box_rows * width, mask, std::max(now, have->second), field(9));
}

/* ---- one instruction ---- */
static i64 issued, done_time; static double class_count[16], mma_busy;

static void merge(Warp &w) {
    for (size_t a = 0; a < w.split.size(); a++)
        for (size_t b = a + 1; b < w.split.size();)
            if (w.split[a].pc == w.split[b].pc && w.split[a].wait == w.split[b].wait) w.split[a].mask |= w.split[b].mask, w.split.erase(w.split.begin() + b);
            else b++;
}
static u32 alive(Warp &w) { u32 m = 0; for (auto &s : w.split) m |= s.mask; return m; }
/* Which lanes go on: the lowest place first.  Lanes that wait for others go on when all are there. */
static bool choose(Warp &w) {
    for (int again = 0; again < 2; again++) {
        for (auto &s : w.split) if (s.wait >= 0 && s.wait < 17) {
            u32 need = w.B[s.wait] & alive(w), there = 0;
            for (auto &t : w.split) if (t.wait == s.wait) there |= t.mask;
            if ((there & need) == need) { int b = s.wait; for (auto &t : w.split) if (t.wait == b) t.wait = -1; merge(w); break; }
        }
        w.cur = -1;
        for (size_t k = 0; k < w.split.size(); k++) if (w.split[k].wait < 0 && (w.cur < 0 || w.split[k].pc < w.split[w.cur].pc)) w.cur = (int)k;
        if (w.cur >= 0) return true;
        bool block = true; for (auto &s : w.split) block &= s.wait == 99;
        if (block) return false;
        for (auto &s : w.split) if (s.wait < 17) s.wait = -1;       /* never in well-formed code */
    }
    return false;
}

/* The next instruction of warp w in quarter q: what it computes, in the lanes of `m`, and when its results are there (`rel`). */
static void execute(SM &s, Warp &w, int q) {
    Split *sp = &w.split[w.cur];
    const int pc = sp->pc;
    Ins &p = prog[pc];
    u32 all = sp->mask, g = p.guard_not ? ~w.P[p.guard] : w.P[p.guard], m = all & g;
    if (p.uniform) m = g & 1 ? ~0u : 0;
    const Operand *o = p.o;
    u32 a[32], b[32], c[32], v[32]; u64 A[32], Bq[32], ad[32];
    int first = 0; while (first < 31 && !(all >> first & 1)) first++;
    int next = pc + 1; u32 taken = 0; int target = 0; std::vector<Split> away;
    int d = 0, src[8], ns = 0, np = 0, ps[8];            /* d: first register operand; src: registers after it; ps: predicates */
    for (int k = 0; k < p.n; k++) if (o[k].kind == PRED) ps[np++] = k;
    while (d < p.n && o[d].kind == PRED) d++;
    for (int k = d + 1; k < p.n; k++) if (o[k].kind != PRED) { if (ns < 8) src[ns++] = k; }
    auto get32 = [&](int k, u32 *to, bool fl = false) { if (k < ns) value(w, o[src[k]], to, fl); else memset(to, 0, 128); };
    auto fetch3 = [&](bool fl) { get32(0, a, fl); get32(1, b, fl); get32(2, c, fl); };
    i64 rel = now + 4; bool memory = false; w.next = now + std::max(1, p.stall);
    double *pipe = s.pipe[q];
    auto lsu = [&](double turns) { land(s); s.lsu = std::max(s.lsu, (double)now) + turns; lsu_busy += turns; return s.lsu; };
    if (p.code == SYNCS && m && p.op.find("PHASECHK") != std::string::npos) {
        /* A wait with TRYWAIT suspends the warp: it takes no turns of the scheduler until the phase
         * has ended. */
        addresses(w, o[1], ad); value(w, o[2], a, 0);
        const Mbarrier &x = w.block->mbarrier[ad[first] & 0xffffff]; const bool over = (u32)(x.phase & 1) != a[first] >> 31;
        if (!over || x.ended > now) { w.next = over ? x.ended : now + 8; return; }
    }
    if (p.code == UCGABAR_WAIT) {
        const Cluster &c = *w.block->cluster; const bool over = c.phase != w.cluster_phase;
        if (!over || c.ended > now) { w.next = over ? c.ended : now + 8; return; }
    }
    if (now >= 0) s.issued++, issued++, class_count[p.cls]++;
    switch (p.code) {
    case SYNCS:
        if (!m) break;
        addresses(w, o[1], ad);
        if (p.op.find("EXCH") != std::string::npos) { value(w, o[2], a, 0); const int n = 0x100000 - (int)(a[first] >> 1 & 0xfffff); w.block->mbarrier[ad[first] & 0xffffff] = {n, n, 0, 0, 0, 0}; }
        else if (p.op.find("ARRIVE") != std::string::npos) {       /* A, T: arrivals and bytes expected: 0, 1, or R: the register's */
            value(w, o[2], a, 0);
            const bool none = p.op.find(".A0") != std::string::npos, many = p.op.find(".ART") != std::string::npos, expects = p.op.find("T0") == std::string::npos;
            const i64 when = (i64)lsu(1) + (i64)gpu.shared_latency;
            LANES if (m >> i & 1) if (Block *x = of_rank(w.block, (u32)ad[i] >> 24)) ::arrive(x, (u32)ad[i], none ? 0 : many ? (int)a[i] : 1, expects ? (int)a[i] : 0, when + (x != w.block ? (i64)gpu.cluster_latency : 0));
        } else { set_pred(w, o[0], ~0u, m); rel = now + (i64)gpu.shared_latency; }
        break;
    case ARRIVES: if (m) { addresses(w, o[0], ad); const i64 when = std::max(w.copied, (i64)lsu(1) + (i64)gpu.shared_latency); LANES if (m >> i & 1) ::arrive(w.block, (u32)ad[i], 1, 0, when); } break;
    case UTMALDG: case UBLKCP: {        /* [to, barrier, x, y], [tensor map] or [from], size / 16; the upper half of the register: bits of the blocks that get it */
        if (!m) break;
        const u32 (*to)[32] = w.R + o[0].ureg, (*from)[32] = w.R + o[1].ureg; u32 last = 0;
        for (int k = 2; k < p.n; k++) if (o[k].kind == REG) last = w.R[o[k].idx][first];
        const u32 mask = p.op.find("MULTICAST") != std::string::npos ? last >> 16 : 0; const u64 at = from[0][first] | (u64)from[1][first] << 32;
        if (p.code == UTMALDG) { tensor_copy(s, w, at, to[0][first], to[1][first], (int)to[2][first], (int)to[3][first], mask); break; }
        std::vector<Line> lines; const int size = (last & 0xffff) * 16;
        for (int k = 0; k < size;) { const int n = std::min(size - k, 128 - (int)((at + k) & 127)); lines.push_back({at + k, to[0][first] + k, n}); k += n; }
        bulk_copy(s, w, lines, to[0][first], to[1][first], size, mask, now, 0); break;
    }
    case UTMACCTL: if (m && p.op.find(".PF") != std::string::npos) s.maps.insert({w.R[o[0].ureg][first] | (u64)w.R[o[0].ureg + 1][first] << 32, now + (i64)gpu.l2_latency}); break;
    case UCGABAR_ARV: w.cluster_phase = w.block->cluster->phase; cluster_arrive(*w.block->cluster, 1); break;
    case UCGABAR_WAIT: break;
    case ELECT: set_pred(w, o[0], 1u << first, m); break;
    case HGMMA: {                       /* a quarter of a multiprocessor has 16 of the 64 rows; B is read once for all four, and A where it is in shared memory */
        if (!w.first_mma) w.first_mma = now;
        const double t = gpu.wgmma_interval * p.columns / 8;
        lsu((p.columns + (o[1].kind == MEM ? 64 : 0)) * 16 * 2 / 128. / 4);
        pipe[MMA] = std::max(pipe[MMA], (double)now) + t; mma_busy += t;
        if (o[p.n - 1].kind == NONE) w.mma_groups.push_back((i64)(pipe[MMA] + gpu.mma_latency));        /* gsb0: the last of its group */
        break;
    }
    case WARPGROUP: if (p.op.find("DEPBAR") != std::string::npos) for (; (int)w.mma_groups.size() > (int)o[1].imm; w.mma_groups.pop_front()) w.next = std::max(w.next, w.mma_groups.front()); break;
    case USETMAXREG: if (o[0].kind == PRED) set_pred(w, o[0], ~0u, ~0u); break;
        case EXIT: sp->mask &= ~(m & (np ? pred(w, o[ps[0]]) : ~0u)); break;
    case BRA: {
        if (p.divert) break;
        if (p.op.find(".ANY") != std::string::npos && m) m = all;
        u32 cond = ~0u; for (int k = 0; k < np; k++) cond &= p.whole_warp && !(pred(w, o[ps[k]]) & 1) ? 0 : pred(w, o[ps[k]]);
        taken = m & cond; target = (int)(o[p.n - 1].imm / 16); break;
    }
    case CALL: taken = m; target = (int)(o[p.n - 1].imm / 16); break;
    case RET: taken = m; value(w, o[0], a, 0); target = (int)(a[first] / 16); break;
    case BRX: value(w, o[0], a, 0); target = (int)((i64)(int32_t)a[first] + (pc * 16 + 16) + (p.n > 1 ? o[1].imm : 0)) / 16;
        LANES if (m >> i & 1) { if (a[i] == a[first]) taken |= 1u << i; else away.push_back({(int)((i64)(int32_t)a[i] + pc * 16 + 16 + (p.n > 1 ? o[1].imm : 0)) / 16, 1u << i, -1}), sp->mask &= ~(1u << i); }
        break;
    case BSSY: w.B[o[0].idx] = all; break;
    case BREAK: w.B[o[p.n - 1].kind == BARRIER ? o[p.n - 1].idx : 16] &= ~(m & (np ? pred(w, o[ps[0]]) : ~0u)); break;
    case BSYNC: if (m) { u32 need = w.B[o[p.n - 1].idx] & alive(w); if ((need & all) != need) { sp->wait = o[p.n - 1].idx; } } break;
    case WARPSYNC: if (o[0].kind == REG && p.op.find("COLLECTIVE") == std::string::npos) { value(w, o[0], a, 0); u32 need = a[first] & alive(w); if ((need & all) != need) { w.B[16] = need; sp->wait = 16; } } break;
    case BAR: {
        int id = 0, count = block_dim[0] * block_dim[1] * block_dim[2] / 32;
        if (p.n > 0) { value(w, o[0], a, 0); id = a[first] & 15; }
        if (p.n > 1) { value(w, o[1], a, 0); count = a[first] / 32; } else count = w.block->left;
        if (!m) break;
        if (!p.arrive) { sp->wait = 99; w.at_barrier = id; for (auto &t : w.split) if (t.wait != 99 && &t != sp) goto later; }
        w.block->arrived[id]++;
    later:
        if (w.block->arrived[id] >= count) { w.block->arrived[id] = 0; for (Warp *x : s.warps) if (x->block == w.block && x->at_barrier == id) { x->at_barrier = -1; for (auto &t : x->split) if (t.wait == 99) t.wait = -1; x->next = std::max(x->next, now + 12); if (x != &w) merge(*x), choose(*x); } for (int k = 0; k < 4; k++) s.sleep[k] = now; }
        break;
    }
    case DEPBAR: { int keep = p.n > 1 ? (int)o[1].imm : 0; i64 t = 0; for (int k = 0; k < (int)w.groups.size() - keep; k++) t = std::max(t, w.groups[k]); while ((int)w.groups.size() > keep) w.groups.pop_front(); w.next = std::max(w.next, t); break; }
    case LDGDEPBAR: w.groups.push_back(w.ready_group); w.ready_group = 0; break;
    case NOP: case ERRBAR: case CGAERRBAR: case MEMBAR: case FENCE: case YIELD: case PREEXIT: case BMOV: case ENDCOLLECTIVE: case ACQBULK: case NANOSLEEP:
        if (p.code == MEMBAR) rel = now + (i64)gpu.l2_latency;
        break;
    case IADD3: {
        fetch3(false); u32 out = 0, out2 = 0, cin = 0, cin2 = 0; int k = d + 1, outs[2], no = 0;
        while (k < p.n && o[k].kind == PRED) { if (no < 2) outs[no++] = k; k++; }
        std::vector<int> ins; for (; k < p.n; k++) if (o[k].kind == PRED) ins.push_back(k);
        if (p.x && ins.size()) cin = pred(w, o[ins[0]]); if (p.x && ins.size() > 1) cin2 = pred(w, o[ins[1]]);
        if (p.m64) { u64 C[32]; value64(w, o[src[0]], A); value64(w, o[src[1]], Bq); if (ns > 2) value64(w, o[src[2]], C); else memset(C, 0, sizeof C); LANES A[i] += Bq[i] + C[i]; LANES a[i] = (u32)A[i], b[i] = A[i] >> 32; set(w, o[d], a, m); set(w, o[d], b, m, 1); break; }
        int extra = 0; if (!p.x) for (int j = 0; j < 3 && j < ns; j++) if (o[src[j]].flags & 1) { u32 *z = j == 0 ? a : j == 1 ? b : c; LANES z[i] -= 1; extra++; }  /* -x as ~x + 1, for the carry */
        LANES { u64 t = (u64)a[i] + b[i] + c[i] + extra + (cin >> i & 1) + (cin2 >> i & 1); v[i] = (u32)t; out |= (u32)((t >> 32) != 0) << i; out2 |= (u32)((t >> 32) > 1) << i; }
        set(w, o[d], v, m); if (no) set_pred(w, o[outs[0]], out, m); if (no > 1) set_pred(w, o[outs[1]], out2, m); break;
    }
    case VIADD: case IADD:
        if (p.m64) { value64(w, o[src[0]], A); value64(w, o[src[1]], Bq); LANES { A[i] += Bq[i]; a[i] = (u32)A[i]; b[i] = A[i] >> 32; } set(w, o[d], a, m); set(w, o[d], b, m, 1); }
        else { fetch3(false); LANES v[i] = a[i] + b[i]; set(w, o[d], v, m); }
        break;
    case IMAD: {
        fetch3(false); u32 cin = p.x && np ? pred(w, o[ps[np - 1]]) : 0;
        if (p.wide) {
            if (ns > 2) value64(w, o[src[2]], A); else memset(A, 0, sizeof A); u32 out = 0;
            LANES { unsigned __int128 t = (unsigned __int128)A[i] + (p.u32_ ? (u64)a[i] * b[i] : (u64)((i64)(int32_t)a[i] * (int32_t)b[i])) + (cin >> i & 1); out |= (u32)((t >> 64) != 0) << i; Bq[i] = (u64)t; }
            LANES { a[i] = (u32)Bq[i]; b[i] = Bq[i] >> 32; }
            set(w, o[d], a, m); set(w, o[d], b, m, 1);
            if (d + 1 < p.n && o[d + 1].kind == PRED) set_pred(w, o[d + 1], out, m);
        } else if (p.hi) { if (ns > 2) value64(w, o[src[2]], A); else memset(A, 0, sizeof A); LANES v[i] = (u32)(((p.u32_ ? (u64)a[i] * b[i] : (u64)((i64)(int32_t)a[i] * (int32_t)b[i])) + A[i]) >> 32); set(w, o[d], v, m); }
        else { LANES v[i] = a[i] * b[i] + c[i] + (cin >> i & 1); set(w, o[d], v, m); }
        break;
    }
    case IDP: fetch3(false); LANES { int t = (int)c[i]; for (int k = 0; k < 4; k++) t += (int8_t)(a[i] >> 8 * k) * (int8_t)(b[i] >> 8 * k); v[i] = (u32)t; } set(w, o[d], v, m); break;
    case IABS: get32(0, a); LANES v[i] = (int32_t)a[i] < 0 ? 0u - a[i] : a[i]; set(w, o[d], v, m); break;
    case IMNMX: case VIMNMX: case VIMNMX3: case VIADDMNMX: {
        if (p.op.find("64") != std::string::npos) { u32 low = np ? pred(w, o[ps[np - 1]]) : ~0u; value64(w, o[src[0]], A); value64(w, o[src[1]], Bq); LANES { bool less = p.u32_ ? A[i] < Bq[i] : (i64)A[i] < (i64)Bq[i]; u64 t = less == (bool)(low >> i & 1) ? A[i] : Bq[i]; a[i] = (u32)t; b[i] = t >> 32; } set(w, o[d], a, m); set(w, o[d], b, m, 1); break; }
        fetch3(false); if (p.code == VIADDMNMX) { LANES a[i] += b[i]; memcpy(b, c, 128); }
        u32 low = np ? pred(w, o[ps[np - 1]]) : ~0u;
        LANES { bool less = p.u32_ ? a[i] < b[i] : (int32_t)a[i] < (int32_t)b[i]; v[i] = less == (bool)(low >> i & 1) ? a[i] : b[i]; }
        if (p.code == VIMNMX3) LANES { bool less = p.u32_ ? v[i] < c[i] : (int32_t)v[i] < (int32_t)c[i]; v[i] = less == (bool)(low >> i & 1) ? v[i] : c[i]; }
        set(w, o[d], v, m); break;
    }
    case LEA: {
        u32 cin = p.x && np ? pred(w, o[ps[np - 1]]) : 0, out = 0; fetch3(false);
        if (p.hi) {
            bool sx = p.op.find(".SX32") != std::string::npos; u32 sh[32]; if (sx) memcpy(sh, c, 128); else get32(3, sh);
            LANES { u64 t = sx ? (u64)(i64)(int32_t)a[i] : a[i] | (u64)c[i] << 32; v[i] = (u32)(t << (sh[i] & 63) >> 32) + b[i] + (cin >> i & 1); }
        } else {
            const int minus = !p.x && o[src[1]].flags & 1;      /* -x as ~x + 1, for the carry */
            LANES { u64 t = (u64)(u32)(a[i] << (c[i] & 31)) + (b[i] - minus) + minus + (cin >> i & 1); v[i] = (u32)t; out |= (u32)(t >> 32 != 0) << i; }
        }
        set(w, o[d], v, m); if (d + 1 < p.n && o[d + 1].kind == PRED && !p.hi) set_pred(w, o[d + 1], out, m); break;
    }
    case LOP3: { fetch3(false); int t = (int)o[src[ns - 1]].imm; u32 out = 0; LANES { v[i] = lut3(a[i], b[i], c[i], t); out |= (u32)(v[i] != 0) << i; } set(w, o[d], v, m); if (d) set_pred(w, o[0], out, m); break; }
    case SHF: {
        fetch3(false); bool q64 = p.op.find("64") != std::string::npos;
        LANES { u32 sh = p.w ? b[i] & (q64 ? 63 : 31) : std::min(b[i], q64 ? 63u : 32u); u64 t = a[i] | (u64)c[i] << 32;
            if (p.left) { t = sh > 63 ? 0 : t << sh; v[i] = p.hi ? (u32)(t >> 32) : (u32)t; }
            else if (p.hi && !q64) v[i] = p.s32 ? (u32)((int32_t)c[i] >> std::min(sh, 31u)) : a[i] && o[src[0]].idx != 255 && o[src[0]].kind == REG ? (u32)(t >> sh >> 0) : sh > 31 ? 0 : c[i] >> sh;
            else { t = p.s32 ? (u64)((i64)t >> sh) : t >> sh; v[i] = p.hi ? (u32)(t >> 32) : (u32)t; } }
        set(w, o[d], v, m); break;
    }
    case PRMT: fetch3(false); LANES { u64 t = a[i] | (u64)c[i] << 32; u32 r = 0; for (int k = 0; k < 4; k++) { int z = b[i] >> 4 * k & 15; u32 y = t >> 8 * (z & 7) & 255; if (z & 8) y = y & 128 ? 255 : 0; r |= y << 8 * k; } v[i] = r; } set(w, o[d], v, m); break;
    case SEL: case FSEL: {
        u32 t = pred(w, o[ps[np - 1]]);
        for (int k = 0; k <= (int)p.m64; k++) { value(w, o[src[0]], a, p.code == FSEL, k); value(w, o[src[1]], b, p.code == FSEL, k); LANES v[i] = t >> i & 1 ? a[i] : b[i]; set(w, o[d], v, m, k); }
        break;
    }
    case ISETP: case FSETP: case HSETP2: {
        u32 r, then; ns = 0; for (int k = 0; k < p.n; k++) if (o[k].kind != PRED) src[ns++] = k;
        if (p.m64 || p.op.find("64") != std::string::npos) { value64(w, o[src[0]], A); value64(w, o[src[1]], Bq); r = p.u32_ ? compare(p.cmp, A, Bq) : compare(p.cmp, (i64 *)A, (i64 *)Bq); }
        else if (p.code == ISETP) { get32(0, a); get32(1, b); r = p.u32_ ? compare(p.cmp, a, b) : compare(p.cmp, (int32_t *)a, (int32_t *)b);
            if (p.ex) { u32 low = pred(w, o[ps[np - 1]]), eq = compare(0, a, b); r = p.cmp == 1 ? r | low : p.cmp == 0 ? r & low : (eq & low) | (~eq & r); } }
        else { float x[32], y[32]; get32(0, a, true); get32(1, b, true); LANES x[i] = f_(a[i]), y[i] = f_(b[i]); r = p.code == HSETP2 ? 0 : compare(p.cmp, x, y); if (p.op.find("U.") != std::string::npos) LANES if (std::isnan(x[i]) || std::isnan(y[i])) r |= 1u << i; }
        then = np > 2 ? pred(w, o[ps[2]]) : ~0u;
        set_pred(w, o[ps[0]], joined(p.join, r, then), m); if (np > 1) set_pred(w, o[ps[1]], joined(p.join, ~r, then), m); break;
    }
    case PLOP3: { std::vector<int> im; for (int k = 0; k < p.n; k++) if (o[k].kind == IMM) im.push_back(k);
        u32 r = lut3(pred(w, o[ps[2]]), pred(w, o[ps[3]]), pred(w, o[ps[4]]), (int)o[im[0]].imm), r2 = lut3(pred(w, o[ps[2]]), pred(w, o[ps[3]]), pred(w, o[ps[4]]), im.size() > 1 ? (int)o[im[1]].imm : 0);
        set_pred(w, o[ps[0]], r, m); set_pred(w, o[ps[1]], r2, m); break; }
    case MOV: for (int k = 0; k <= (int)p.m64; k++) { value(w, o[src[0]], v, 0, k); set(w, o[d], v, m, k); } break;
    case P2R: { int up = o[src[0]].idx, sh = p.op.find(".B1") != std::string::npos ? 8 : p.op.find(".B2") != std::string::npos ? 16 : p.op.find(".B3") != std::string::npos ? 24 : 0; get32(1, a); get32(2, b);
        LANES { u32 pk = 0; for (int k = 0; k < 7; k++) pk |= (w.P[up + k] >> i & 1) << k; v[i] = (a[i] & ~(b[i] << sh)) | (pk & b[i]) << sh; } set(w, o[d], v, m); break; }
    case R2P: { value(w, o[1], a, 0); value(w, o[2], b, 0); int sh = p.op.find(".B1") != std::string::npos ? 8 : p.op.find(".B2") != std::string::npos ? 16 : p.op.find(".B3") != std::string::npos ? 24 : 0;
        for (int k = 0; k < 7; k++) { u32 r = 0, t = 0; LANES { r |= (a[i] >> (k + sh) & 1) << i; t |= (b[i] >> k & 1) << i; } w.P[k] = (w.P[k] & ~(t & m)) | (r & t & m); } break; }
    case POPC: get32(0, a); LANES v[i] = __builtin_popcount(a[i]); set(w, o[d], v, m); break;
    case FLO: get32(0, a); LANES v[i] = a[i] ? 31 - __builtin_clz(a[i]) : ~0u; set(w, o[d], v, m); break;
    case BREV: get32(0, a); LANES { u32 r = 0; for (int k = 0; k < 32; k++) r |= (a[i] >> k & 1) << (31 - k); v[i] = r; } set(w, o[d], v, m); break;
    case SGXT: fetch3(false); LANES { int sh = 32 - (int)(b[i] & 31); v[i] = p.u32_ ? a[i] << sh >> sh : (u32)((int32_t)(a[i] << sh) >> sh); } set(w, o[d], v, m); break;
    case BMSK: fetch3(false); LANES v[i] = (b[i] > 31 ? ~0u : (1u << b[i]) - 1) << (a[i] & 31); set(w, o[d], v, m); break;
    case CS2R: case S2R: LANES v[i] = o[1].kind == SPECIAL ? special(w, specials[o[1].idx], p.uniform ? first : i) : 0; set(w, o[0], v, m); if (p.code == CS2R && p.op.find(".32") == std::string::npos) { memset(v, 0, sizeof v); set(w, o[0], v, m, 1); }
        if (p.code == S2R) rel = now + 20; break;
    case FADD: fetch3(true); LANES v[i] = b_(f_(a[i]) + f_(b[i])); set(w, o[d], v, m); break;
    case FMUL: fetch3(true); LANES v[i] = b_(f_(a[i]) * f_(b[i])); set(w, o[d], v, m); break;
    case FFMA: { fetch3(true); bool sat = p.op.find("SAT") != std::string::npos; LANES { float t = f_(a[i]) * f_(b[i]) + f_(c[i]); v[i] = b_(sat ? fminf(1, fmaxf(0, t)) : t); } set(w, o[d], v, m); break; }
    case FMNMX: { fetch3(true); u32 low = np ? pred(w, o[ps[np - 1]]) : ~0u; LANES v[i] = b_(low >> i & 1 ? fminf(f_(a[i]), f_(b[i])) : fmaxf(f_(a[i]), f_(b[i]))); set(w, o[d], v, m); break; }
    case FCHK: set_pred(w, o[0], 0, m); break;
    case MUFU: { get32(0, a, true); const std::string f = p.op.substr(5); LANES { float x = f_(a[i]); v[i] = b_(f == "EX2" ? exp2f(x) : f == "RCP" ? 1 / x : f == "RSQ" ? 1 / sqrtf(x) : f == "LG2" ? log2f(x) : f == "SQRT" ? sqrtf(x) : f == "TANH" ? tanhf(x) : f == "COS" ? cosf(x) : sinf(x)); } set(w, o[d], v, m); break; }
    case I2F: case I2FP: get32(0, a); if (p.op.find("64") != std::string::npos) { value64(w, o[src[0]], A); LANES v[i] = b_((float)A[i]); set(w, o[d], v, m); break; } LANES { double x = p.op.find(".U") != std::string::npos ? (double)a[i] : (double)(int32_t)a[i]; float t = (float)x; if (p.op.find(".RP") != std::string::npos && t < x) t = nextafterf(t, 1e30f); v[i] = b_(t); } set(w, o[d], v, m); break;
    case F2I: get32(0, a, true); if (p.op.find("64") != std::string::npos) { LANES { u64 t = (u64)std::max(0.f, f_(a[i])); v[i] = (u32)t; b[i] = t >> 32; } set(w, o[d], v, m); set(w, o[d], b, m, 1); break; } LANES { float x = f_(a[i]); v[i] = p.op.find(".U") != std::string::npos ? (x <= 0 ? 0 : x >= 4294967040.f ? ~0u : (u32)x) : (u32)(int32_t)x; } set(w, o[d], v, m); break;
    case HFMA2: case HMUL2: case HADD2: case F2FP: case F2F: case I2I: case I2IP: case HMNMX2: case DMUL: case DADD: case DFMA: memset(v, 0, sizeof v); if (p.code == HFMA2 && p.n > 3 && o[3].kind == IMM && o[1].idx == 255) LANES v[i] = (u32)o[3].imm; set(w, o[d], v, m); break;
    case HMMA: case IMMA: case QMMA: case OMMA: if (!w.first_mma) w.first_mma = now; for (int k = 0; k < (p.f32 || p.code != HMMA ? 4 : 2); k++) { value(w, o[3], v, 0, k); set(w, o[0], v, m, k); } break;
    case LDC: { int words = std::max(1, p.bytes / 4); for (int k = 0; k < words; k++) { value(w, o[1], v, 0, k); if (p.bytes < 4) LANES v[i] &= p.bytes == 1 ? 255 : 65535; set(w, o[0], v, m, k); } rel = now + (p.uniform ? 22 : 30); break; }
    case SHFL: { int k0 = o[0].kind == PRED; value(w, o[k0 + 1], a, 0); value(w, o[k0 + 2], b, 0); char how = p.op[5];
        LANES { int j = how == 'B' ? i ^ (int)(b[i] & 31) : how == 'D' ? i + (int)b[i] : how == 'U' ? i - (int)b[i] : (int)(b[i] & 31); v[i] = a[j < 0 || j > 31 ? i : j]; }
        set(w, o[k0], v, m); if (k0) set_pred(w, o[0], ~0u, m); rel = (i64)lsu(1) + 24; break; }
    case VOTE: { u32 t = all & pred(w, o[ps[np - 1]]); if (p.uniform) m = ~0u; bool every = p.op.find("ALL") != std::string::npos; u32 yes = (every ? t == all : t != 0) ? ~0u : 0; LANES v[i] = t; for (int k = 0; k < p.n - 1; k++) { if (o[k].kind == REG) set(w, o[k], v, m); else set_pred(w, o[k], yes, m); } rel = now + 12; break; }
    case R2UR: { if (!m) break; int k0 = o[0].kind == PRED, f0 = __builtin_ctz(m); u32 others = 0; value(w, o[k0 + 1], a, 0); LANES v[i] = a[f0], others |= (u32)(a[i] != a[f0]) << i;
        set(w, o[k0], v, ~0u); if (k0) set_pred(w, o[0], others, m); rel = now + 12; break; }        /* the predicate: lanes with another number */
    case REDUX: { int k0 = o[0].kind == PRED; value(w, o[k0 + 1], a, 0); u32 r = a[first]; bool mx = p.op.find("MAX") != std::string::npos, mn = p.op.find("MIN") != std::string::npos, sg = p.op.find("S32") != std::string::npos, or_ = p.op.find("OR") != std::string::npos; int f0 = 1;
        LANES if (all >> i & 1) { u32 x = a[i]; if (f0) { r = x; f0 = 0; } else r = mx ? (sg ? (u32)std::max((int32_t)r, (int32_t)x) : std::max(r, x)) : mn ? (sg ? (u32)std::min((int32_t)r, (int32_t)x) : std::min(r, x)) : or_ ? r | x : r + x; } LANES v[i] = r; set(w, o[k0], v, ~0u); rel = now + 14; break; }
    case LDS: case LDSM: case STS: case ATOMS: {
        int at = p.code == STS ? 0 : p.code == ATOMS ? (o[0].kind == MEM ? 0 : o[1].kind == MEM ? 1 : 2) : 1; if (!m) break;
        addresses(w, o[at], ad); int turns = conflicts(ad, m, p.bytes), words = std::max(1, p.bytes / 4);
        auto mem = [&](int i, int k) { return &w.block->shared[(ad[i] + 4 * k) & 0x3ffff]; };
        if (p.code == STS) { for (int k = 0; k < words; k++) { value(w, o[1], v, 0, k); LANES if (m >> i & 1) memcpy(mem(i, k), &v[i], std::min(4, p.bytes)); } }
        else if (p.code == LDS) for (int k = 0; k < words; k++) { LANES { v[i] = 0; if (m >> i & 1) memcpy(&v[i], mem(i, k), std::min(4, p.bytes)); } set(w, o[0], v, m, k); }
        else if (p.code == LDSM) { memset(v, 0, sizeof v); for (int k = 0; k < words; k++) set(w, o[0], v, m, k); }
        else { bool inc = p.op.find("INC") != std::string::npos || p.n <= at + 1; if (!inc) value(w, o[p.n - 1], b, 0); else LANES b[i] = 1; bool mx = p.op.find("MAX") != std::string::npos;
            LANES if (m >> i & 1) { u32 old; memcpy(&old, mem(i, 0), 4); v[i] = old; old = mx ? std::max(old, b[i]) : old + b[i]; memcpy(mem(i, 0), &old, 4); } if (at && o[at - 1].kind == REG) set(w, o[at - 1], v, m); turns *= 2; }
        rel = (i64)lsu(turns) + (p.code == STS ? 10 : (i64)gpu.shared_latency); break;
    }
    case CCTL: {                        /* a prefetch brings a line of 128 bytes into the L2; its other kinds take no time */
        if (!m || p.op.find(".PF2") == std::string::npos) break;
        Operand line = o[0]; line.flags |= 8;           /* a register pair, though the listing does not say so */
        addresses(w, line, ad); LANES ad[i] &= ~127ull;
        const double before = s.l2;
        load_time(s, lsu(1), ad, m, 128, false, false, &memory); memory = false;
        s.l2 = before + (s.l2 - before) / 4; break;     /* a line is asked for, and does not come to the multiprocessor */
    }
    case LDG: case LD: case LDL: {
        if (!m) break; addresses(w, o[1].kind == MEM ? o[1] : o[2], ad); int words = std::max(1, p.bytes / 4), sub = std::min(4, p.bytes);
        if (p.code == LDL) { w.local.resize(32 * 1024); for (int k = 0; k < words; k++) { LANES v[i] = w.local[(ad[i] / 4 + k) % 1024 * 32 + i]; set(w, o[0], v, m, k); } rel = (i64)lsu(words) + (i64)gpu.l1_latency; break; }
        for (int k = 0; k < words; k++) { LANES v[i] = m >> i & 1 ? get(ad[i] + 4 * k, sub) : 0; if (p.s8) LANES v[i] = (u32)(int8_t)v[i]; if (p.s16) LANES v[i] = (u32)(int16_t)v[i]; set(w, o[0], v, m, k); }
        double t = lsu(std::max(1, p.bytes / 4));
        rel = load_time(s, t, ad, m, p.bytes, p.keep, false, &memory); break;
    }
    case STG: case ST: case STL: {
        if (!m) break; addresses(w, o[0], ad); int words = std::max(1, p.bytes / 4);
        if (p.code == STL) w.local.resize(32 * 1024);
        for (int k = 0; k < words; k++) { value(w, o[1], v, 0, k); LANES if (m >> i & 1) { if (p.code == STL) w.local[(ad[i] / 4 + k) % 1024 * 32 + i] = v[i]; else put(ad[i] + 4 * k, v[i], std::min(4, p.bytes)); } }
        double t = lsu(std::max(1, p.bytes / 4)); if (p.code != STL) load_time(s, t, ad, m, p.bytes, false, true, &memory); rel = (i64)t + 10; break;
    }
    case LDGSTS: {
        if (!m) break; int mem2 = -1, mem1 = -1; for (int k = 0; k < p.n; k++) if (o[k].kind == MEM) { if (mem1 < 0) mem1 = k; else mem2 = k; }
        int size = p.bytes; u64 to[32]; addresses(w, o[mem1], to); addresses(w, o[mem2], ad);
        u32 z = m; if (np) z &= pred(w, o[ps[np - 1]]);
        LANES if (m >> i & 1) for (int k = 0; k < size; k += 4) { u32 x = z >> i & 1 ? get(ad[i] + k, 4) : 0; memcpy(&w.block->shared[(to[i] + k) & 0x3ffff], &x, 4); }
        double t = lsu(std::max(1, size / 4)); const i64 there = load_time(s, t, ad, z, size, p.keep, false, &memory); w.ready_group = std::max(w.ready_group, there); w.copied = std::max(w.copied, there); rel = now + 12; break;
    }
    case ATOMG: case ATOM: case RED: case REDG: {
        if (!m) break; int at = 0; while (o[at].kind != MEM) at++; addresses(w, o[at], ad); value(w, o[at + 1 < p.n ? at + 1 : at], b, 0);
        bool inc = p.op.find(".INC") != std::string::npos, mx = p.op.find("MAX") != std::string::npos;
        LANES if (m >> i & 1) { u32 old = real(ad[i]) ? get(ad[i], 4) : 0; v[i] = old; put(ad[i], inc ? (old >= b[i] ? 0 : old + 1) : mx ? std::max(old, b[i]) : old + b[i], 4); }
        if (at && o[at - 1].kind == REG) set(w, o[at - 1], v, m); rel = (i64)lsu(1) + (i64)gpu.l2_latency + 2 * __builtin_popcount(m); memory = true; break;
    }
    default: memset(v, 0, sizeof v); if (p.n && o[0].kind == REG) set(w, o[0], v, m);
    }
    switch (p.cls) {                            /* how long the pipe of these 32 lanes is taken */
    case ALU: pipe[ALU] = now + gpu.alu_interval; break;
    case FMA: pipe[FMA] = now + gpu.fma_interval; break;
    case IMADC: pipe[FMA] = now + gpu.imad_interval; rel = std::max(rel, now + 6); break;
    case HALF: pipe[FMA] = now + gpu.half_interval; break;
    case MUFUC: pipe[MUFUC] = now + gpu.mufu_interval; rel = std::max(rel, now + 20); break;
    case FP64: pipe[FP64] = now + 16; rel = now + 40; break;
    case MMA: { double t = p.code == OMMA ? gpu.fp4_interval : gpu.mma_interval * p.mma_time; pipe[MMA] = std::max(pipe[MMA], (double)now) + t; mma_busy += t; rel = now + (i64)gpu.mma_latency; break; }
    default:;
    }
    if (p.wb < 6) { w.score[p.wb] = std::max(w.score[p.wb], rel); w.by_memory[p.wb] = memory; }
    if (p.rb < 6) w.score[p.rb] = std::max(w.score[p.rb], std::min(rel, now + 12));
    {
        if (taken && taken != sp->mask) { sp->mask &= ~taken; sp->pc = next; w.split.push_back({target, taken, -1}); }
        else if (taken) sp->pc = target;
        else sp->pc = next;
        if (taken) w.next = std::max(w.next, now + p.stall + (target != next ? (i64)gpu.branch : 0));
    }
    for (auto &t : away) w.split.push_back(t);
    for (size_t k = 0; k < w.split.size();) if (!w.split[k].mask) w.split.erase(w.split.begin() + k); else k++;
    if (w.split.size() > 1) merge(w);
    if (w.split.empty()) { w.done = 1; done_time = std::max(done_time, now); s.finished = now; }
    else if (!choose(w)) w.next = std::max(w.next, now + 1);
}

/* ---- the clock ---- */
int main(int argc, char **argv) {
    FILE *f = fopen(argv[1], "rb"); if (!f || argc < 2) return 1;
    char word[256]; std::string what; int n; std::map<std::string, double> job;
    while (fscanf(f, "%255s", word) == 1) {     /* "gpu NAME VALUE", "job NAME VALUE", "bank B N <bytes>", "buffer ADDRESS N <bytes>", "fetched ADDRESS N" (in the L2), "special N names", "code N instructions" */
        what = word;
        if (what == "gpu" || what == "job") { double v; if (fscanf(f, "%255s %lf", word, &v) != 2) return 1; if (what == "gpu") set_constant(word, v); else job[word] = v; }
        else if (what == "bank") { int b; if (fscanf(f, "%d %d", &b, &n) != 2) return 1; fgetc(f); auto &t = b ? bank2 : bank0; t.resize(n); if (n && fread(&t[0], 1, n, f) != (size_t)n) return 1; }
        else if (what == "buffer") { unsigned long long a; if (fscanf(f, "%llu %d", &a, &n) != 2) return 1; fgetc(f); buffers.push_back({a, std::vector<uint8_t>(n)}); if (fread(&buffers.back().data[0], 1, n, f) != (size_t)n) return 1; }
        else if (what == "fetched") {           /* what is still under way then comes in the order of the addresses, the last at job "late_us" */
            unsigned long long a; if (fscanf(f, "%llu %d", &a, &n) != 2) return 1;
            const double late = std::min(1., job["late"]) * n, cycles = gpu.ghz * 1000;
            for (u64 at = a; at < a + n; at += 32) {
                u64 bit = (at - COLD) >> 5; if (bit / 64 >= fetched.size()) fetched.resize(bit / 64 + (1 << 20)); fetched[bit / 64] |= (u64)1 << bit % 64;
                const double left = (double)(a + n - at) / std::max(late, 1.);
                if (left < 1) under_way[at >> 5] = (i64)(job["late_us"] * cycles * (1 - left) + gpu.dram_latency);
            }
        }
        else if (what == "special") { if (fscanf(f, "%d", &n) != 1) return 1; for (int i = 0; i < n && fscanf(f, "%255s", word) == 1; i++) specials.push_back(word); }
        else if (what == "code") {
            if (fscanf(f, "%d", &n) != 1) return 1;
            for (int i = 0; i < n; i++) {
                Ins p = {}; if (fscanf(f, "%255s %d %d %d %d %d %d %d", word, &p.stall, &p.wb, &p.rb, &p.wait, &p.guard, &p.guard_not, &p.n) != 8) return 1;
                p.op = word; for (int k = 0; k < p.n; k++) { long long im; Operand &o = p.o[k]; if (fscanf(f, "%d %d %d %d %d %lld", &o.kind, &o.idx, &o.ureg, &o.flags, &o.scale, &im) != 6) return 1; o.imm = im; }
                prepare(p); prog.push_back(p);
            }
        }
    }
    fclose(f);
    std::sort(buffers.begin(), buffers.end(), [](const Buffer &a, const Buffer &b) { return a.base < b.base; });
    for (int k = 0; k < 3; k++) grid[k] = (int)job[std::string("grid") + "xyz"[k]], block_dim[k] = (int)job[std::string("block") + "xyz"[k]];
    const int threads = block_dim[0] * block_dim[1] * block_dim[2], n_warps = (threads + 31) / 32, sms = (int)gpu.sms, blocks = grid[0] * grid[1] * grid[2], occ = (int)job["occupancy"];
    int n_sm = std::min((int)job["sample"], std::min(sms, blocks)); if (n_sm < 1) n_sm = 1;
    const int size = std::max(1, (int)job["cluster"]), busy = std::min(sms, blocks) / size * size; n_sm = std::max(n_sm / size, 1) * size;       /* a cluster's blocks are on neighbouring multiprocessors */
    double share = std::min(1., job["reuse"] * n_sm / busy);
    dram_rate = gpu.bandwidth * gpu.efficiency / (gpu.ghz * 1e9) * share;
    l1_lines = (size_t)std::max(64., (gpu.l1_bytes - occ * job["shared"]) / 128);
    std::vector<SM> S(n_sm);
    const i64 lead = (i64)(job["early"] ? gpu.lead_us * gpu.ghz * 1000 : 0), start_cost = (i64)(gpu.block_start_us * gpu.ghz * 1000);
    auto start_block = [&](SM &s, i64 t, std::shared_ptr<Cluster> c) {
        int b = s.queue.front(); s.queue.pop_front(); Block *bl = new Block(); memset(bl->arrived, 0, sizeof bl->arrived); bl->left = n_warps; bl->shared.assign(0x40000 + 64, 0);
        bl->id[0] = b % grid[0]; bl->id[1] = b / grid[0] % grid[1]; bl->id[2] = b / grid[0] / grid[1]; s.resident++;
        bl->sm = &s; bl->cluster = c; bl->rank = (int)c->block.size(); c->block.push_back(bl); c->warps += n_warps;
        for (int k = 0; k < n_warps; k++) {
            Warp *w = new Warp(); memset(w->R, 0, sizeof w->R); memset(w->P, 0, sizeof w->P); memset(w->B, 0, sizeof w->B); w->P[7] = w->P[15] = ~0u;
            w->split.push_back({0, threads - 32 * k >= 32 ? ~0u : (1u << (threads - 32 * k)) - 1, -1}); w->cur = 0; w->index = k; w->at_barrier = -1; w->done = 0; w->cluster_phase = 0; w->block = bl; w->next = t; w->first_mma = 0; w->ready_group = w->copied = 0;
            for (int j = 0; j < 6; j++) w->score[j] = -NEVER, w->by_memory[j] = false;
            s.warps.push_back(w);
        }
        for (int k = 0; k < 4; k++) s.sleep[k] = std::min(s.sleep[k], t);
    };
    auto start = [&](SM &s, i64 t) {            /* the next cluster, if there is one and its multiprocessors, of which s is one, have room */
        SM *of = &S[(&s - &S[0]) / size * size];
        for (int k = 0; k < size; k++) if (of[k].queue.empty() || of[k].resident >= occ) return;
        std::shared_ptr<Cluster> c(new Cluster());
        for (int k = 0; k < size; k++) start_block(of[k], t, c);
    };
    for (int i = 0; i < n_sm; i++) {
        SM &s = S[i]; s.lsu = s.l2 = s.tma = -1e9; memset(s.pipe, 0, sizeof s.pipe); memset(s.last, 0, sizeof s.last); for (i64 &t : s.sleep) t = -lead; s.resident = 0; s.finished = 0; s.dram = s.issued = 0; for (auto &q : s.pipe) for (double &t : q) t = -1e9;
        int sm = (n_sm == size ? 0 : (int)((i64)(i / size) * (busy / size - 1) / (n_sm / size - 1))) * size + i % size;
        for (int b = sm; b < blocks; b += busy) s.queue.push_back(b);
    }
    for (int i = 0; i < n_sm; i += size) for (int k = 0; k < occ; k++) start(S[i], k < job["early"] ? -lead : 0);
    now = -lead; dram_free = job.count("free_us") ? job["free_us"] * gpu.ghz * 1000 : -1e9; double idle[3] = {0}, first_sum = 0, first_n = 0; int left = n_sm;
    while (left > 0) {
        i64 soonest = NEVER;
        for (SM &s : S) if (!s.warps.empty()) for (int q = 0; q < 4; q++) {
            land(s);
            if (s.sleep[q] > now) { soonest = std::min(soonest, s.sleep[q]); continue; }
            Warp *best = NULL; int bi = 0, count = (int)s.warps.size(), memory_waits = 0, mine = 0, bar_waits = 0; i64 wake = NEVER;
            for (int t = 0; t < count; t++) {
                int i = (s.last[q] + t) % count; Warp &w = *s.warps[i];
                if (i % 4 != q || w.done) continue;
                mine++;
                if (w.cur < 0) { bar_waits++; continue; }
                const Ins &p = prog[w.split[w.cur].pc]; i64 at = w.next; bool mem = false;
                for (int b = 0; b < 6; b++) if (p.wait >> b & 1 && w.score[b] > at) at = w.score[b], mem = w.by_memory[b];
                if (p.code == ACQBULK && at < 0) at = 0;
                int pi = p.cls == IMADC || p.cls == HALF ? FMA : p.cls;
                if (pi == ALU || pi == FMA || pi == MUFUC || pi == MMA || pi == FP64) at = std::max(at, (i64)std::ceil(s.pipe[q][pi] - (pi == MMA ? 2 : 0)));
                if (p.cls == LSU) at = std::max(at, (i64)s.lsu - 8);
                if (at > now) { wake = std::min(wake, at); memory_waits += mem; continue; }
                best = &w; bi = i; break;
            }
            if (best) { s.last[q] = bi; execute(s, *best, q); soonest = now + 1; s.sleep[q] = now;
                if (best->done) {
                    Block *bl = best->block; bl->left--; bl->cluster->warps--; cluster_arrive(*bl->cluster, 0);
                    for (int id = 0; id < 16; id++) if (bl->arrived[id] && bl->arrived[id] >= bl->left && bl->left) { bl->arrived[id] = 0; for (Warp *x : s.warps) if (x->block == bl && x->at_barrier == id) { x->at_barrier = -1; for (auto &t : x->split) if (t.wait == 99) t.wait = -1; merge(*x); choose(*x); x->next = std::max(x->next, now + 12); } for (int k = 0; k < 4; k++) s.sleep[k] = now; }
                    if (!bl->left) {
                        std::vector<Warp *> rest; std::vector<Warp *> gone;
                        for (Warp *x : s.warps) (x->block == bl ? gone : rest).push_back(x);
                        for (Warp *x : gone) { if (x->first_mma) first_sum += x->first_mma, first_n++; delete x; }
                        bl->cluster->block[bl->rank] = NULL; delete bl; s.warps = rest; s.resident--; memset(s.last, 0, sizeof s.last);
                        start(s, now + start_cost);
                        if (s.warps.empty() && s.queue.empty()) left--;
                        break;
                    }
                } else for (Warp *x : s.warps) if (x->cur < 0) choose(*x);
            } else {
                if (mine) { i64 until = std::min(wake, now + 400); if (now >= 0) idle[memory_waits * 2 >= mine - bar_waits && memory_waits ? 0 : bar_waits * 2 > mine ? 1 : 2] += (double)(until - now); s.sleep[q] = until; soonest = std::min(soonest, until); }
            }
        }
        now = std::max(now + 1, soonest == NEVER ? now + 1 : soonest);
        if (now > 2000000000) { printf("error endless\n"); return 0; }
    }
    double mean_end = 0; for (SM &s : S) mean_end += s.finished; mean_end /= n_sm;
    /* Blocks differ by their number: the sum over all multiprocessors by the trapezoid rule over the simulated ones. */
    auto sum = [&](double SM::*what) { double t = 0; for (SM &s : S) t += s.*what; double ends = 0; for (int k = 0; k < size; k++) ends += S[k].*what + S[n_sm - 1 - k].*what;
        return n_sm < 3 * size || n_sm == busy ? t / share : (t - ends / 2) * busy / (n_sm - size); };
    double end = (double)std::max<i64>(1, done_time);
    printf("backlog_us %.3f cycles %.0f us %.3f dram %.0f issued %.0f ipc %.3f first_mma_us %.3f mean_end %.3f mma %.3f lsu %.3f wait_memory %.3f wait_barrier %.3f wait_other %.3f sampled %d busy %d", (dram_free - end) / gpu.ghz / 1000, end, end / gpu.ghz / 1000, sum(&SM::dram), sum(&SM::issued),
           issued / end / n_sm, first_n ? first_sum / first_n / gpu.ghz / 1000 : 0, mean_end / end, mma_busy / end / n_sm / 4, lsu_busy / end / n_sm, idle[0] / end / n_sm / 4, idle[1] / end / n_sm / 4, idle[2] / end / n_sm / 4, n_sm, busy);
    printf(" classes"); for (int k = 0; k <= FP64; k++) printf(",%.3f", class_count[k] / std::max<i64>(1, issued));
    for (auto &u : unknown) printf(" unknown %s=%d", u.first.c_str(), u.second);
    printf("\n");
}
