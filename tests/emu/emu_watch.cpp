/* emu_watch.cpp - sees every access of the kernels to device and shared memory, and aborts where it is a race.
 *
 * Kernels that are compiled with gcc's -fsanitize=thread (`make race`) call a function before each load and store.  These are
 * below, in place of ThreadSanitizer's own; other kernels do not call them, and then nothing here runs.
 *
 * What is an error
 *   Before a thread has called ptx_grid_wait, in a kernel that is launched with programmatic dependent launch: to read what the
 *   kernel ahead of it writes, or to write what that one reads or writes, as it may still run.  gpu.h says why only that one.
 *   A load that takes memory for constant (ptx_load_once16, __ldg) of bytes that this kernel writes, or the one ahead: also after
 *   the wait, since this one may have begun before.
 *   Two accesses of a block to the same bytes by different warps, one of them a write, without a barrier between them: an
 *   mbarrier, too, or the cluster's.  A cp.async writes from its issue until it was waited for, a bulk copy until its mbarrier was.
 *   The same by two blocks of a kernel, in device memory, unless the first has called __threadfence and then an atomic operation,
 *   and the second that operation behind it and then __threadfence.  Two atomic operations are no race.
 *
 * How.  A warp has a clock that goes on at each barrier, and of the others' clocks those behind which it knows itself to be
 * (`known`).  Four bytes have a cell that says who wrote and read them last, and when by that one's clock.  Of several who
 * read the same bytes only some are kept: so a race may be missed, but what is reported is one.  Lanes of a warp are not told
 * apart: random order shows a missing __syncwarp by its results.  Bytes on stacks and of the host are not looked at. */
#include "emu_watch.h"

#include <algorithm>
#include <cstring>
#include <map>

#include <dlfcn.h>
#include <sys/mman.h>

namespace emu {

bool watching;

/* ---- memory and its cells ---- */

/* Who and when, in a word: the warp's clock in the upper 22 bits, whether it was atomic, the warp, and which of the four bytes. */
enum { WARP_SHIFT = 4, ATOMIC_BIT = 1 << 9, CLOCK_SHIFT = 10 };
static unsigned bytes_of(unsigned at) { return at & 15; }
static unsigned warp_of(unsigned at) { return at >> WARP_SHIFT & 31; }
static unsigned clock_of(unsigned at) { return at >> CLOCK_SHIFT; }

struct Cell {                           /* of device memory; kernels and blocks by their numbers */
    unsigned writer[2], reader[2];      /* the last kernel, and the one before */
    unsigned once;                      /* that took it for constant */
    unsigned wrote_block, wrote, read_block, read;      /* of the last one, the last block and when */
};
struct SharedCell { unsigned block, wrote, read[6]; };  /* `block`: when it was last used, by emu::epoch */

static const size_t DEVICE_ROOM = (size_t)1 << 38, SHARED_ROOM = (size_t)1 << 26, DYNAMIC_ROOM = 256 * 1024;
static const size_t PAGE = 65536;       /* a multiple of that of every machine */
static unsigned char *device, *shared_room;
static size_t device_used, shared_used;
static Cell *cells;
static SharedCell *shared_cells;

static void *reserve(size_t bytes) {
    void *p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) fail("no room for %zu bytes of addresses", bytes);
    return p;
}

/* Addresses are never used again. */
void *watched_memory(size_t bytes) {
    if (!device) {
        device = (unsigned char *)reserve(DEVICE_ROOM);
        cells = (Cell *)reserve(DEVICE_ROOM / 4 * sizeof(Cell));
    }
    size_t all = (bytes + PAGE - 1) / PAGE * PAGE;
    if (all > DEVICE_ROOM - device_used) return nullptr;
    device_used += all;
    return device + device_used - all;
}

void forget_memory(void *p, size_t bytes) {
    size_t all = (bytes + PAGE - 1) / PAGE * PAGE;
    madvise(p, all, MADV_DONTNEED);
    madvise(&cells[((unsigned char *)p - device) / 4], all / 4 * sizeof(Cell), MADV_DONTNEED);
}

void *watched_shared(size_t bytes) {
    if (!shared_room) {
        shared_room = (unsigned char *)reserve(SHARED_ROOM);
        shared_cells = (SharedCell *)reserve(SHARED_ROOM / 4 * sizeof(SharedCell));
        shared_used = 8 * DYNAMIC_ROOM;         /* as many as a cluster has blocks */
    }
    void *p = shared_room + shared_used;
    shared_used += (bytes + 127) / 128 * 128;
    if (shared_used > SHARED_ROOM) fail("no room for SHARED");
    return p;
}

unsigned char *watched_dynamic(size_t bytes, unsigned rank) {
    watched_shared(0);
    if (bytes > DYNAMIC_ROOM) fail("%zu bytes of dynamic shared memory", bytes);
    return shared_room + rank * DYNAMIC_ROOM;
}

/* ---- who is behind whom ---- */

static const unsigned WARPS = 32, BARRIERS = 8 * 16 + 1;        /* of a cluster; 16 of each block, and its own */
struct Clocks { unsigned of[WARPS]; };

/* What a warp knows: until when it is behind the others, and until when they had called a fence.  Both are passed on at barriers. */
struct Knowledge { Clocks done, fenced; };
static Knowledge known[WARPS], at_barrier[BARRIERS], returned;
static unsigned long long fenced[32 * WARPS];           /* the block in which a thread has called one last */

/* What this kernel's blocks had fenced at their atomic operations, by those's address and by block.  Blocks run one after another: who
 * comes to an address finds all that will be there of the blocks before. */
static std::map<uintptr_t, std::map<unsigned, Clocks>> released;
struct Acquired { unsigned warp, clock; uintptr_t where; };             /* by a warp of this block, when, and at which address */
static std::vector<Acquired> acquired, usable;          /* at the atomic; at the fence behind it */

static void join(Clocks *a, const Clocks &b) {
    for (unsigned w = 0; w < WARPS; w++) a->of[w] = std::max(a->of[w], b.of[w]);
}
static void join(Knowledge *a, const Knowledge &b) {
    join(&a->done, b.done);
    join(&a->fenced, b.fenced);
}
static void tick(unsigned warp) {
    if (++known[warp].done.of[warp] >> (32 - CLOCK_SHIFT)) fail("too many barriers for the clock of warp %u", warp);
}
static unsigned my_warp() { return self->linear / 32; }
static unsigned now(unsigned warp) { return known[warp].done.of[warp]; }

/* What is passed on at each mbarrier: by the arrivals of this phase, and of those that have ended. */
struct Phases { Knowledge now, ended; };
static std::map<const void *, Phases> mbarriers;

void watch_cluster() {
    for (unsigned w = 0; w < WARPS; w++) known[w] = {}, known[w].done.of[w] = 1;
    for (Knowledge &b : at_barrier) b = {};
    returned = {};
    acquired.clear();
    usable.clear();
    mbarriers.clear();
}

void watch_come(unsigned barrier, unsigned thread) {
    join(&at_barrier[barrier], known[thread / 32]);
    tick(thread / 32);
}
void watch_leave(unsigned barrier, unsigned thread) {
    join(&known[thread / 32], at_barrier[barrier]);
    if (barrier % 16 == 0) join(&known[thread / 32], returned);
}
void watch_open(unsigned barrier) { at_barrier[barrier] = {}; }
void watch_return(unsigned thread) { join(&returned, known[thread / 32]); }

void watch_arrive(const void *mbarrier, unsigned thread) {
    join(&mbarriers[mbarrier].now, known[thread / 32]);
    tick(thread / 32);
}
void watch_phase(const void *mbarrier) {
    Phases *p = &mbarriers[mbarrier];
    join(&p->ended, p->now);
    p->now = {};
}
void watch_behind(const void *mbarrier, unsigned thread) { join(&known[thread / 32], mbarriers[mbarrier].ended); }

static bool knows(unsigned warp, unsigned other, unsigned clock) { return warp == other || known[warp].done.of[other] >= clock; }

static unsigned this_block() { return blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z); }

void watch_fence() {
    unsigned warp = my_warp();
    join(&known[warp].fenced, known[warp].done);
    fenced[self->linear] = epoch;
    for (const Acquired &a : acquired) {
        bool there = !knows(warp, a.warp, a.clock);
        for (const Acquired &u : usable) there |= u.warp == warp && u.where == a.where;
        if (!there) usable.push_back({warp, now(warp), a.where});
    }
}

/* An atomic operation, for who has called a fence before, and for who will call one. */
static void pass_on(const void *p) {
    unsigned warp = my_warp();
    bool there = !released.count((uintptr_t)p);
    for (const Acquired &a : acquired) there |= a.warp == warp && a.where == (uintptr_t)p;
    if (!there) acquired.push_back({warp, now(warp), (uintptr_t)p});
    if (fenced[self->linear] == epoch) join(&released[(uintptr_t)p][this_block()], known[warp].fenced);
}

/* Is the running thread behind what that warp of a block has done until then? */
static bool behind(unsigned block, unsigned at) {
    unsigned warp = my_warp();
    if (block == this_block()) return knows(warp, warp_of(at), clock_of(at));
    for (const Acquired &u : usable) {
        if (!knows(warp, u.warp, u.clock)) continue;
        auto of_block = released[u.where].find(block);
        if (of_block != released[u.where].end() && of_block->second.of[warp_of(at)] >= clock_of(at)) return true;
    }
    return false;
}

/* ---- the kernel and those before it ---- */

static unsigned this_launch;                 /* its number */
static std::vector<unsigned> ahead;
static std::vector<const char *> names = {"-"};         /* by numbers */

void watch_launch(const char *name, const std::vector<unsigned> &before) {
    this_launch = (unsigned)launches();
    ahead = before;
    names.resize(this_launch + 1, "-");
    names[this_launch] = name;
    released.clear();
}

static bool is_ahead(unsigned number) { return number && std::find(ahead.begin(), ahead.end(), number) != ahead.end(); }

/* ---- the accesses ---- */

static const void *where;               /* in the program: of the access that is looked at */
static Access kind;

[[noreturn]] static void race(const void *p, const char *what, unsigned number) {
    static const char *const name[] = {"reads", "writes", "changes by an atomic operation", "reads as constant"};
    Dl_info in;
    size_t offset = dladdr(where, &in) ? (size_t)((const char *)where - (const char *)in.dli_fbase) : 0;
    fail("%s %p, %s%s (addr2line -ie %s %#zx)", name[kind], p, what, number ? names[number] : "", offset ? in.dli_fname : "?", offset);
}

static bool clash(unsigned at, unsigned bytes) { return (at & bytes) && !(kind == ATOMIC && (at & ATOMIC_BIT)); }

static unsigned stamp(unsigned bytes) {
    unsigned warp = my_warp();
    return now(warp) << CLOCK_SHIFT | (kind == ATOMIC ? ATOMIC_BIT : 0) | warp << WARP_SHIFT | bytes;
}

/* Notes who has done it last: kernel, block and when. */
static void note(unsigned by[2], unsigned *block, unsigned *at, unsigned stamp) {
    if (by[0] != this_launch) {
        by[1] = by[0];
        by[0] = this_launch;
    } else if (*block == this_block() && (*at ^ stamp) <= 15) {
        stamp |= bytes_of(*at);
    }
    *block = this_block();
    *at = stamp;
}

static void touch_device(const void *p, Cell *c, unsigned bytes) {
    bool early = !ahead.empty() && !self->waited, writes = kind == WRITE || kind == ATOMIC;
    if (!ahead.empty() && (early || kind == ONCE))
        for (unsigned number : c->writer)
            if (is_ahead(number))
                race(p, early ? "before ptx_grid_wait, and the kernel ahead writes it: " : "and the kernel ahead, which may run then, writes it: ", number);
    if (early && writes)
        for (unsigned number : c->reader)
            if (is_ahead(number)) race(p, "before ptx_grid_wait, and the kernel ahead reads it: ", number);
    if (kind == ONCE) {
        if (c->writer[0] == this_launch) race(p, "and this kernel writes it", 0);
        c->once = this_launch;
    }
    if (writes && c->once == this_launch) race(p, "and this kernel reads it as constant", 0);
    if (c->writer[0] == this_launch && clash(c->wrote, bytes) && !behind(c->wrote_block, c->wrote))
        race(p, c->wrote_block == this_block() ? "which another warp has written since the last barrier" : "which another block has written", 0);
    if (writes && c->reader[0] == this_launch && clash(c->read, bytes) && !behind(c->read_block, c->read))
        race(p, c->read_block == this_block() ? "which another warp has read since the last barrier" : "which another block has read", 0);
    if (writes) note(c->writer, &c->wrote_block, &c->wrote, stamp(bytes));
    if (kind != WRITE) note(c->reader, &c->read_block, &c->read, stamp(bytes));
}

static void touch_shared(const void *p, SharedCell *c, unsigned bytes) {
    unsigned warp = my_warp(), at = stamp(bytes);
    if (c->block != (unsigned)epoch) {
        *c = {};
        c->block = (unsigned)epoch;
    }
    if (clash(c->wrote, bytes) && !knows(warp, warp_of(c->wrote), clock_of(c->wrote)))
        race(p, "shared memory which another warp has written since the last barrier", 0);
    if (kind == WRITE || kind == ATOMIC) {
        for (unsigned read : c->read)
            if (clash(read, bytes) && !knows(warp, warp_of(read), clock_of(read)))
                race(p, "shared memory which another warp has read since the last barrier", 0);
        if ((c->wrote ^ at) <= 15) at |= bytes_of(c->wrote);
        c->wrote = at;
    }
    if (kind == WRITE) return;
    unsigned free = random(6);
    for (unsigned i = 0; i < 6; i++) {
        if (c->read[i] && warp_of(c->read[i]) != warp) continue;
        free = i;
        if (c->read[i] && (c->read[i] ^ at) <= 15) at |= bytes_of(c->read[i]);
        break;
    }
    c->read[free] = at;
}

static void touch(const void *p, size_t bytes, Access k, const void *from) {
    if (!self || !bytes) return;
    uintptr_t in_device = (uintptr_t)p - (uintptr_t)device, in_shared = (uintptr_t)p - (uintptr_t)shared_room;
    if (in_device >= device_used && in_shared >= shared_used) return;
    kind = k;
    where = from;
    const bool global = in_device < device_used;
    uintptr_t at = global ? in_device : in_shared, end = at + bytes;
    if (k == ATOMIC && global) pass_on(p);
    while (at < end) {
        size_t cell = at / 4, next = std::min<uintptr_t>(end, 4 * cell + 4);
        unsigned part = (1u << (next - 4 * cell)) - (1u << (at - 4 * cell));
        if (global) touch_device(device + at, &cells[cell], part);
        else touch_shared(shared_room + at, &shared_cells[cell], part);
        at = next;
    }
}

void watch_access(const void *p, size_t bytes, Access k) { touch(p, bytes, k, __builtin_return_address(0)); }

}

/* ---- what gcc calls ----
 * Not where this file itself is compiled with -fsanitize=thread: then ThreadSanitizer's own are
 * linked, and nothing here runs. */

#ifndef __SANITIZE_THREAD__
#define HOOK(name, bytes, kind) extern "C" void name(const void *p) { emu::touch(p, bytes, emu::kind, __builtin_return_address(0)); }
#define HOOKS(bytes) HOOK(__tsan_read##bytes, bytes, READ) HOOK(__tsan_write##bytes, bytes, WRITE)
HOOKS(1) HOOKS(2) HOOKS(4) HOOKS(8) HOOKS(16)
extern "C" void __tsan_read_range(const void *p, size_t n) { emu::touch(p, n, emu::READ, __builtin_return_address(0)); }
extern "C" void __tsan_write_range(const void *p, size_t n) { emu::touch(p, n, emu::WRITE, __builtin_return_address(0)); }
extern "C" void __tsan_func_entry(void *) {}
extern "C" void __tsan_func_exit() {}
extern "C" void __tsan_vptr_update(void *, void *) {}
extern "C" int __tsan_atomic32_fetch_add(int *p, int v, int) { return __atomic_fetch_add(p, v, __ATOMIC_SEQ_CST); }    /* std::shared_ptr's */
extern "C" int __tsan_atomic32_load(const int *p, int order) {
    emu::touch(p, sizeof *p, emu::ATOMIC, __builtin_return_address(0));
    return __atomic_load_n(p, order == __ATOMIC_RELAXED ? __ATOMIC_RELAXED : __ATOMIC_ACQUIRE);
}
extern "C" void __tsan_atomic32_store(int *p, int v, int order) {
    emu::touch(p, sizeof *p, emu::ATOMIC, __builtin_return_address(0));
    __atomic_store_n(p, v, order == __ATOMIC_RELAXED ? __ATOMIC_RELAXED : __ATOMIC_RELEASE);
}
extern "C" void __tsan_init() { emu::watching = true; }
#endif
