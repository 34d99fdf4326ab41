/* emu.cpp - runs kernels: the scheduler of threads, barriers, warp operations, PTX twins.  See emu.h. */
#include "emu.h"
#include "emu_watch.h"

#include <algorithm>
#include <cstdarg>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#if !defined(__x86_64__) && !defined(EMU_UCONTEXT)
#define EMU_UCONTEXT                    /* slower: swapcontext makes a system call */
#endif
#ifdef EMU_UCONTEXT
#include <ucontext.h>
#endif

#ifdef EMU_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

/* Inner loops of the emulation itself: with UBSan's checks they take five times as long. */
#ifdef __clang__
#define UNCHECKED __attribute__((no_sanitize("address", "undefined")))
#else
#define UNCHECKED __attribute__((no_sanitize("address,undefined")))
#endif

uint3 blockIdx;
dim3 blockDim, gridDim;

namespace emu {

Thread *self;
unsigned long long epoch;
unsigned char *dynamic_shared;
unsigned atomics;

static const unsigned MAX_THREADS = 1024, MAX_BARRIERS = 16, MAX_CLUSTER = 8;
static const unsigned char GARBAGE = 0xff;

/* ---- chance ---- */

static unsigned long long first_seed = (unsigned long long)setting("EMU_SEED", 1);
static unsigned long long chance = first_seed * 0x9e3779b97f4a7c15 + 1;

void seed(unsigned long long s) { first_seed = s; chance = s * 0x9e3779b97f4a7c15 + 1; }

UNCHECKED unsigned random(unsigned n) {
    chance = chance * 6364136223846793005 + 1442695040888963407;
    return (unsigned)((chance >> 32) * n >> 32);
}

/* ---- stacks and the switch between them ---- */

#ifdef EMU_UCONTEXT
typedef ucontext_t Context;
#else
typedef void *Context;                  /* the stack pointer; everything else lies on the stack */
#endif

struct Stack {
    char *low;
    size_t size;
    Context start;
    unsigned number;
};

static unsigned long long n_switches;
unsigned long long switches() { return n_switches; }

static void worker();

#ifdef EMU_UCONTEXT

static void switch_stack(Context *save, Context *load) { swapcontext(save, load); }

static void prepare(Stack *s, void (*entry)()) {
    getcontext(&s->start);
    s->start.uc_stack.ss_sp = s->low;
    s->start.uc_stack.ss_size = s->size;
    s->start.uc_link = nullptr;
    makecontext(&s->start, entry, 0);
}

#else

/* The callee-saved registers and the return address of the caller stay on the old stack; a jump instead of a return,
 * because the processor predicts returns from the calls it has seen. */
__attribute__((naked, noinline)) static void switch_stack(Context *, Context *) {
    asm("pushq %rbp\n\tpushq %rbx\n\tpushq %r12\n\tpushq %r13\n\tpushq %r14\n\tpushq %r15\n\t"
        "movq %rsp, (%rdi)\n\tmovq (%rsi), %rsp\n\t"
        "popq %r15\n\tpopq %r14\n\tpopq %r13\n\tpopq %r12\n\tpopq %rbx\n\tpopq %rbp\n\t"
        "popq %rcx\n\tjmp *%rcx");
}

static void prepare(Stack *s, void (*entry)()) {
    /* Stacks begin at different places within their pages, or the same few lines of the caches would hold all of them. */
    void **top = (void **)(s->low + s->size - s->number * 320 % 8192);
    top[-1] = nullptr;                  /* entry's return address: it never returns */
    top[-2] = (void *)entry;
    for (int i = 3; i <= 8; i++) top[-i] = nullptr;
    s->start = top - 8;
}

#endif

static Stack stacks[MAX_THREADS], *idle_stacks[MAX_THREADS];
static unsigned n_stacks, n_idle_stacks;

/* Memory for a stack, above a page that nobody can touch. */
static void map_stack(Stack *s, size_t size) {
    static const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const int how = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    char *p = (char *)mmap(nullptr, page + size, PROT_READ | PROT_WRITE, how, -1, 0);
    if (p == MAP_FAILED || mprotect(p, page, PROT_NONE)) fail("no memory for another stack");
    s->low = p + page;
    s->size = size;
}

static Stack *take_stack() {
    Stack *s;
    if (n_idle_stacks > 0) {
        s = idle_stacks[--n_idle_stacks];
    } else {
#ifdef EMU_ASAN
        static const size_t size = (size_t)setting("EMU_STACK", 256) * 1024;
#else
        static const size_t size = (size_t)setting("EMU_STACK", 64) * 1024;
#endif
        s = &stacks[n_stacks];
        map_stack(s, size);
        s->number = n_stacks++;
    }
    prepare(s, worker);
    return s;
}

/* ---- the running cluster, of one block or more ---- */

enum State { FRESH, ACTIVE, IN_WARP, AT_BARRIER, AT_MBARRIER, DONE };

struct Copy { void *to; const void *from; int size, bytes; unsigned group; bool done; };        /* a cp.async under way */

struct Barrier;
struct Fiber : Thread {
    Context context;
    unsigned rank;                      /* its block's in the cluster */
    Stack *stack;
    void *fake_stack;                   /* ASan's */
    State state;
    const char *what, *file;            /* waiting: for what, where, */
    int line;
    unsigned mask;                      /* with which lanes, */
    const Barrier *barrier;             /* at which barrier */
    int votes;                          /* and with what result */
    const uint64_t *mbarrier;
    std::vector<Copy> copies;
    unsigned group;
};

struct Meeting {                        /* an operation of a warp for which lanes are missing */
    unsigned mask, arrived;
    WarpFinish *finish;
    const char *what;
};
struct Warp {
    unsigned alive, at_barrier;
    int n_meetings;
    Meeting meeting[32];
    void *frame[32];
};
struct Barrier {
    Fiber **waiting;
    unsigned n, passed, need;           /* those waiting, those that only arrived; need 0: all living threads, … */
    const unsigned *alive;              /* … which are so many */
    int votes, line;
    const char *file;
};

static Fiber fibers[MAX_THREADS];
static Warp warps[MAX_THREADS / 32];
static const unsigned ALL_BARRIERS = MAX_CLUSTER * MAX_BARRIERS + 1;
static Fiber *lists[1 + ALL_BARRIERS][MAX_THREADS];
static Fiber **ready = lists[0], *fresh[MAX_THREADS];   /* can go on; not begun */
static unsigned n_ready, n_fresh, n_threads, n_alive;   /* of the cluster */
static unsigned n_blocks, block_threads, alive_in[MAX_CLUSTER];         /* blocks; threads of one; of each, living ones */
static Barrier barriers[ALL_BARRIERS];  /* of one block after the other; the last one is the cluster's */
static Barrier *const cluster_barrier = &barriers[ALL_BARRIERS - 1];
static unsigned here, first_block;      /* the rank of the running thread's block; blockIdx.x of the cluster's first */
static unsigned char *dynamic_of[MAX_CLUSTER];
static unsigned slow_warp;              /* see draw */
static unsigned long long idle_yields;  /* since a thread got anywhere */
static unsigned long long grid_waits;   /* threads of the grid that have called ptx_grid_wait */

static const Launch *running;
static Context main_context;
static const void *main_stack;
static size_t main_stack_size;
static bool from_main;
static std::vector<Shared *> shared_places;             /* in use by this block */
static size_t shared_bytes, dynamic_bytes;

UNCHECKED static Fiber *me() { return (Fiber *)self; }

/* That thread runs next. */
UNCHECKED static inline void turn_to(Fiber *f) {
    self = f;
    if (f->rank == here) return;
    here = f->rank;
    blockIdx.x = first_block + here;
    dynamic_shared = dynamic_of[here];
}

static void print_place() {
    if (!running) return;
    fprintf(stderr, "kernel %s, block (%u,%u,%u)", running->name, blockIdx.x, blockIdx.y, blockIdx.z);
    if (self) fprintf(stderr, ", thread (%u,%u,%u)", self->index.x, self->index.y, self->index.z);
    fprintf(stderr, ", EMU_SEED=%llu: ", first_seed);
}

void fail(const char *format, ...) {
    va_list args;
    va_start(args, format);
    fflush(stdout);
    fprintf(stderr, "emu: ");
    print_place();
    vfprintf(stderr, format, args);
    fprintf(stderr, "\n");
    va_end(args);
    abort();
}

/* ---- switching ---- */

/* Leaves the current stack for the one at `low`, to go on at *load.  Comes back when somebody loads *save. */
UNCHECKED static inline void leave(Context *save, Context *load, void **fake_stack, const void *low, size_t size) {
    n_switches++;
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(fake_stack, low, size);
#else
    (void)fake_stack, (void)low, (void)size;
#endif
    switch_stack(save, load);
}

UNCHECKED static inline void arrive(void *fake_stack) {
#ifdef EMU_ASAN
    const void *low;
    size_t size;
    __sanitizer_finish_switch_fiber(fake_stack, &low, &size);
    if (from_main) main_stack = low, main_stack_size = size;
#else
    (void)fake_stack;
#endif
    from_main = false;
}

UNCHECKED static inline Fiber *take(Fiber **list, unsigned *n, unsigned i) {
    Fiber *f = list[i];
    list[i] = list[--*n];
    return f;
}

[[noreturn]] static void deadlock();
static bool late_arrival();

/* Which of the n threads that can go on, ready ones first.  In half of the blocks one warp hardly ever, as long as there are
 * others: so these overtake it as far as barriers let them, which drawing alone, thread by thread, never does. */
UNCHECKED static unsigned draw(unsigned n) {
    unsigned i = random(n);
    for (int again = 0; again < 8 && (i < n_ready ? ready[i] : fresh[i - n_ready])->linear / 32 == slow_warp; again++) i = random(n);
    return i;
}

/* Another thread's turn, whoever can go on, the caller if it is among them.  Comes back when it is the caller's again. */
UNCHECKED static void suspend() {
    Fiber *f = me(), *next;
    while (n_ready + n_fresh == 0 && late_arrival()) {}
    unsigned n = n_ready + n_fresh;
    if (n == 0) deadlock();
    unsigned i = draw(n);
    if (i < n_ready) {
        next = take(ready, &n_ready, i);
        if (next == f) return;
        turn_to(next);
        leave(&f->context, &next->context, &f->fake_stack, next->stack->low, next->stack->size);
    } else {
        next = take(fresh, &n_fresh, i - n_ready);
        next->stack = take_stack();
        next->state = ACTIVE;
        turn_to(next);
        leave(&f->context, &next->stack->start, &f->fake_stack, next->stack->low, next->stack->size);
    }
    arrive(f->fake_stack);
}

UNCHECKED static inline void wake(Fiber *f) {
    f->state = ACTIVE;
    ready[n_ready++] = f;
}

void yield() {
    if (!self) return;
    if (++idle_yields > 10000000) fail("the thread spins for ever");
    wake(me());
    suspend();
}

/* ---- the host and the device take turns ----
 * Kernels run on a stack of their own, the device's.  A thread that looks at what the host writes
 * may leave its kernel as it is: then device_run returns and the host goes on.  The kernel goes on
 * with the next device_run, which any thread of the host may call. */

struct Side { Context context; void *fake_stack; const void *low; size_t size; };
static Side host_side, device_side;
static Stack device_stack;
static std::function<void()> device_work;
static bool device_began, device_busy;

UNCHECKED static void cross(Side *from, Side *to, Context *load) {
    n_switches++;
#ifdef EMU_ASAN
    __sanitizer_start_switch_fiber(&from->fake_stack, to->low, to->size);
#endif
    switch_stack(&from->context, load);
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(from->fake_stack, &to->low, &to->size);
#else
    (void)to;
#endif
}

UNCHECKED static void device_main() {
#ifdef EMU_ASAN
    __sanitizer_finish_switch_fiber(nullptr, &host_side.low, &host_side.size);
#endif
    for (;;) {
        device_work();
        device_busy = false;
        cross(&device_side, &host_side, &host_side.context);
    }
}

void device_begin(std::function<void()> work) {
    if (device_busy) fail("work for a device that has not finished");
    device_work = std::move(work);
    device_busy = true;
}

bool device_run() {
    Context *load = &device_side.context;
    if (!device_began) {
        map_stack(&device_stack, 1 << 20);
        prepare(&device_stack, device_main);
        device_side.low = device_stack.low;
        device_side.size = device_stack.size;
        load = &device_stack.start;
        device_began = true;
    }
    cross(&host_side, &device_side, load);
    return !device_busy;
}

void let_host() {
    if (!device_busy || random(2)) return;
    if (n_ready + n_fresh) {            /* first whoever else of the block can go on */
        wake(me());
        suspend();
        return;
    }
    Thread *thread = self;
    const Launch *launch = running;
    self = nullptr;
    running = nullptr;
    cross(&device_side, &host_side, &host_side.context);
    self = thread;
    running = launch;
    idle_yields = 0;
}

/* ---- barriers ---- */

UNCHECKED static inline bool complete(const Barrier *b) { return b->n > 0 && b->n + b->passed >= (b->need ? b->need : *b->alive); }

/* Whether a warp's lanes that wait there can take part in nothing else: __syncthreads, or the cluster's. */
static inline bool is_whole(const Barrier *b) { return (b - barriers) % MAX_BARRIERS == 0; }

UNCHECKED static void release(Barrier *b) {
    if (watching)
        for (unsigned i = 0; i < b->n; i++) watch_leave((unsigned)(b - barriers), b->waiting[i]->linear);
    if (watching) watch_open((unsigned)(b - barriers));
    for (unsigned i = 0; i < b->n; i++) {
        b->waiting[i]->state = ACTIVE, b->waiting[i]->votes = b->votes;
        if (is_whole(b)) warps[b->waiting[i]->linear / 32].at_barrier = 0;
    }
    if (n_ready == 0) {
        std::swap(ready, b->waiting);
        n_ready = b->n;
    } else {
        for (unsigned i = 0; i < b->n; i++) ready[n_ready++] = b->waiting[i];
    }
    b->n = b->passed = 0;
    b->votes = 0;
    idle_yields = 0;
}

void grid_wait() {
    if (!self->waited) grid_waits++;
    self->waited = true;
}

/* What the kernel ahead of this one waited for is only sure to be over once this one has waited itself. */
void grid_launch_dependents(const char *file, int line) {
    if (running->dependent && !self->waited)
        fail("ptx_grid_launch_dependents in %s:%d before ptx_grid_wait: the next kernel could begin while the one before the last runs", file, line);
}

static bool strict = !setting("EMU_LOOSE", 0);

/* A thread that comes to a barrier must not be waited for by lanes of its warp. */
static void apart(const Fiber *f, const char *what, const char *file, int line) {
    const Warp *w = &warps[f->linear / 32];
    for (int i = 0; i < w->n_meetings; i++)
        if (w->meeting[i].mask >> f->linear % 32 & 1)
            fail("%s in %s:%d, but lanes %08x of its warp wait for it in %s", what, file, line, w->meeting[i].arrived, w->meeting[i].what);
}

/* The checks of a thread that comes to a barrier. */
static Barrier *come(Fiber *f, const char *what, int id, int count, const char *file, int line) {
    if (id < 0 || id >= (int)MAX_BARRIERS || count % 32 || count < 0) fail("%s(%d, %d) in %s:%d: no such barrier", what, id, count, file, line);
    Barrier *b = &barriers[f->rank * MAX_BARRIERS + (unsigned)id];
    apart(f, what, file, line);
    if (b->n + b->passed == 0) {
        b->file = file, b->line = line, b->need = (unsigned)count;
    } else if (b->need != (unsigned)count) {
        fail("%s(%d, %d) in %s:%d, but others wait there for %u threads", what, id, count, file, line, b->need);
    } else if (strict && id == 0 && (b->line != line || (b->file != file && strcmp(b->file, file)))) {
        fail("%s in %s:%d, but other threads of the block are at the one in %s:%d", what, file, line, b->file, b->line);
    }
    return b;
}

UNCHECKED static int wait_at(Barrier *b, const char *what, bool vote, const char *file, int line) {
    Fiber *f = me();
    if (watching) watch_come((unsigned)(b - barriers), f->linear);
    f->what = what, f->file = file, f->line = line, f->barrier = b;
    f->state = AT_BARRIER;
    if (is_whole(b)) warps[f->linear / 32].at_barrier |= 1u << f->linear % 32;
    b->votes += vote;
    b->waiting[b->n++] = f;
    if (complete(b)) release(b);        /* this one too: the last to come is not always the first to go */
    suspend();
    return f->votes;
}

int barrier(const char *what, int id, int count, bool vote, const char *file, int line) {
    return wait_at(come(me(), what, id, count, file, line), what, vote, file, line);
}

int cluster_rank() { return (int)here; }
void cluster_sync(const char *file, int line) {
    apart(me(), "barrier.cluster", file, line);
    wait_at(cluster_barrier, "barrier.cluster", false, file, line);
}

void barrier_arrive(const char *what, int id, int count, const char *file, int line) {
    Barrier *b = come(me(), what, id, count, file, line);
    if (watching) watch_come((unsigned)(b - barriers), me()->linear);
    b->passed++;
    if (b->passed > b->need) fail("%s(%d, %d) in %s:%d: more threads than that", what, id, count, file, line);
    if (complete(b)) release(b);
    else if (b->passed == b->need) b->passed = 0;
}

/* ---- operations of a warp ---- */

UNCHECKED static inline bool complete(const Warp *w, const Meeting *m) { return (m->mask & w->alive & ~m->arrived) == 0; }

/* The result for all, who can go on then, but for the caller, who never waited. */
UNCHECKED static void conclude(Warp *w, int i, unsigned caller) {
    Meeting m = w->meeting[i];
    w->meeting[i] = w->meeting[--w->n_meetings];
    m.finish(m.arrived, w->frame);
    Fiber *lane = &fibers[(w - warps) * 32];
    for (unsigned left = m.arrived & ~caller; left; left &= left - 1) wake(lane + __builtin_ctz(left));
    idle_yields = 0;
}

[[noreturn]] static void elsewhere(const char *what, unsigned mask, unsigned lanes, const char *file, int line) {
    unsigned lane = (unsigned)__builtin_ctz(lanes);
    const Fiber *other = &fibers[me()->linear / 32 * 32 + lane];
    fail("%s(%08x) in %s:%d names lane %u, which waits in %s of %s:%d%s", what, mask, file, line, lane, other->what, other->file, other->line,
         other->state == IN_WARP && other->mask != mask ? " with another mask" : "");
}

UNCHECKED void warp_call(const char *what, WarpFinish *finish, unsigned mask, void *frame, const char *file, int line) {
    Fiber *f = me();
    Warp *w = &warps[f->linear / 32];
    unsigned lane = f->linear % 32, bit = 1u << lane;
    if (!(mask & bit)) fail("%s(%08x) in %s:%d does not name its own lane, %u", what, mask, file, line, lane);
    if (mask & w->at_barrier) elsewhere(what, mask, mask & w->at_barrier, file, line);
    int i = 0;
    while (i < w->n_meetings && w->meeting[i].mask != mask) {
        if ((w->meeting[i].mask & bit) && (mask & w->meeting[i].arrived)) elsewhere(what, mask, mask & w->meeting[i].arrived, file, line);
        i++;
    }
    Meeting *m = &w->meeting[i];
    if (i == w->n_meetings) {
        w->n_meetings++;
        *m = {mask, 0, finish, what};
    } else if (m->finish != finish) {
        elsewhere(what, mask, m->arrived, file, line);
    }
    w->frame[lane] = frame;
    m->arrived |= bit;
    if (complete(w, m)) {
        conclude(w, i, bit);
    } else {
        f->what = what, f->file = file, f->line = line, f->mask = mask;
        f->state = IN_WARP;
        suspend();
    }
}

#define EACH_LANE(lanes) for (unsigned left = (lanes), lane; left && (lane = (unsigned)__builtin_ctz(left), 1); left &= left - 1)
#define OPERAND(lane) ((Operand *)frame[lane])

/* A lane that did not take part: its value is undefined. */
static uint64_t from_lane(unsigned lanes, void *const *frame, unsigned lane) {
    return lanes >> lane & 1 ? OPERAND(lane)->value : ~0ull;
}

static unsigned width_of(const Operand *o) {
    unsigned w = (unsigned)o->width;
    if (w == 0 || w > 32 || (w & (w - 1))) fail("a shuffle of width %d", o->width);
    return w;
}

void finish_sync(unsigned, void *const *) {}
void finish_index(unsigned lanes, void *const *frame) {
    EACH_LANE(lanes) {
        Operand *o = OPERAND(lane);
        unsigned w = width_of(o);
        o->result = from_lane(lanes, frame, (lane & ~(w - 1)) | ((unsigned)o->arg & (w - 1)));
    }
}
void finish_up(unsigned lanes, void *const *frame) {
    EACH_LANE(lanes) {
        Operand *o = OPERAND(lane);
        unsigned first = lane & ~(width_of(o) - 1), delta = (unsigned)o->arg & 31;
        o->result = lane >= first + delta ? from_lane(lanes, frame, lane - delta) : o->value;
    }
}
void finish_down(unsigned lanes, void *const *frame) {
    EACH_LANE(lanes) {
        Operand *o = OPERAND(lane);
        unsigned last = lane | (width_of(o) - 1), delta = (unsigned)o->arg & 31;
        o->result = lane + delta <= last ? from_lane(lanes, frame, lane + delta) : o->value;
    }
}
void finish_xor(unsigned lanes, void *const *frame) {
    EACH_LANE(lanes) {
        Operand *o = OPERAND(lane);
        unsigned last = lane | (width_of(o) - 1), other = lane ^ ((unsigned)o->arg & 31);
        o->result = other <= last ? from_lane(lanes, frame, other) : o->value;
    }
}
void finish_ballot(unsigned lanes, void *const *frame) {
    unsigned r = 0;
    EACH_LANE(lanes) r |= (unsigned)OPERAND(lane)->value << lane;
    EACH_LANE(lanes) OPERAND(lane)->result = r;
}
void finish_all(unsigned lanes, void *const *frame) {
    uint64_t r = 1;
    EACH_LANE(lanes) r &= OPERAND(lane)->value;
    EACH_LANE(lanes) OPERAND(lane)->result = r;
}
void finish_match(unsigned lanes, void *const *frame) {
    for (unsigned a = 0; a < 32; a++) {
        if (!(lanes >> a & 1)) continue;
        unsigned r = 0;
        EACH_LANE(lanes) r |= (unsigned)(OPERAND(lane)->value == OPERAND(a)->value) << lane;
        OPERAND(a)->result = r;
    }
}

template <class T, class F> static void reduce(unsigned lanes, void *const *frame, F f) {
    T r = (T)OPERAND(__builtin_ctz(lanes))->value;
    EACH_LANE(lanes & (lanes - 1)) r = f(r, (T)OPERAND(lane)->value);
    EACH_LANE(lanes) OPERAND(lane)->result = (uint64_t)r;
}
#define REDUCE(name, T, expression) \
    void name(unsigned lanes, void *const *frame) { reduce<T>(lanes, frame, [](T a, T b) { return (T)(expression); }); }
REDUCE(finish_add, unsigned, a + b)
REDUCE(finish_min, unsigned, std::min(a, b))
REDUCE(finish_max, unsigned, std::max(a, b))
REDUCE(finish_min_signed, int, std::min(a, b))
REDUCE(finish_max_signed, int, std::max(a, b))
REDUCE(finish_and, unsigned, a & b)
REDUCE(finish_or, unsigned, a | b)
REDUCE(finish_exclusive_or, unsigned, a ^ b)

/* ---- shared memory ---- */

static void *exact(size_t bytes, size_t align) {
    void *p = nullptr;
    if (posix_memalign(&p, align < 16 ? 16 : align, bytes)) fail("no memory for %zu bytes", bytes);
    return p;
}

void *shared_new(Shared *s, size_t bytes, size_t align) {
    if (!self) fail("shared memory on the host");
    if (n_blocks > 1) fail("SHARED in a cluster is not emulated");
    if (!s->p) s->p = watching ? watched_shared(bytes) : exact(bytes, align);           /* kept from block to block */
    s->bytes = bytes;
    s->epoch = epoch;
    memset(s->p, GARBAGE, bytes);
    shared_places.push_back(s);
    shared_bytes += (bytes + 15) / 16 * 16;
    if (shared_bytes > 48 * 1024) fail("more than 48 KB of SHARED");
    if (shared_bytes + dynamic_bytes > running->shared_limit)
        fail("%zu bytes of SHARED and %zu of dynamic shared memory, %zu allowed", shared_bytes, dynamic_bytes, running->shared_limit);
    return s->p;
}

bool is_shared(const void *p, size_t bytes) {
    const unsigned char *c = (const unsigned char *)p;
    if (dynamic_bytes && c >= dynamic_shared && c + bytes <= dynamic_shared + dynamic_bytes) return true;
    for (const Shared *s : shared_places)
        if (c >= (unsigned char *)s->p && c + bytes <= (unsigned char *)s->p + s->bytes) return true;
    return false;
}

/* ---- cp.async ---- */

static void copy_now(const Copy &c) {
    if (c.bytes) memcpy(c.to, c.from, (size_t)c.bytes);
    memset((char *)c.to + c.bytes, 0, (size_t)(c.size - c.bytes));
}

static void perform(const Copy &c) {
    watch(c.to, (size_t)c.size, WRITE);
    if (!c.done) copy_now(c);
}

void cp_async(void *smem, const void *global, int size, int bytes, const char *file, int line) {
    if ((uintptr_t)smem % (unsigned)size || (uintptr_t)global % (unsigned)size)
        fail("cp.async of %d bytes in %s:%d, unaligned: to %p from %p", size, file, line, smem, global);
    if (bytes < 0 || bytes > size) fail("cp.async of %d bytes of %d in %s:%d", bytes, size, file, line);
    if (!is_shared(smem, (size_t)size)) fail("cp.async in %s:%d to %p, which is not shared memory of this block", file, line, smem);
    if (bytes && is_shared(global, 1)) fail("cp.async in %s:%d from shared memory", file, line);
    unsigned char now[16];
    memcpy(now, global, (size_t)bytes); /* here and not at the wait does AddressSanitizer find a wrong address */
    watch(global, (size_t)bytes, READ);
    Copy c = {smem, global, size, bytes, me()->group, random(2) != 0};
    if (c.done) {
        memcpy(smem, now, (size_t)bytes);
        memset((char *)smem + bytes, 0, (size_t)(size - bytes));
    }
    watch(smem, (size_t)size, WRITE);   /* it may be written now, … */
    if (!c.done || watching) me()->copies.push_back(c);         /* … and until it was waited for */
}

void cp_async_commit() { me()->group++; }

void cp_async_wait(int pending) {
    std::vector<Copy> &copies = me()->copies;
    size_t n = 0;
    while (n < copies.size() && (int)(me()->group - copies[n].group) > pending) perform(copies[n++]);
    copies.erase(copies.begin(), copies.begin() + (long)n);
}

/* ---- mbarrier ----
 * Its 64 bits are 16 that say it is one, the bytes that the phase still waits for (negative where they came before they were
 * expected), the phase's parity, the arrivals of a phase, and those of them that are still to come. */

struct Mbarrier { int count, left, parity, bytes; };
static const uint64_t IS_MBARRIER = 0xba44ull << 48, ANY_MBARRIER = 0xffffull << 48;
static const int MBARRIER_COUNTS = 1 << 11, MOST_BYTES = (1 << 20) - 1;

/* Copies under way: an arrival that waits for those that a thread began before, or a box, of so many bytes. */
struct LateArrival { uint64_t *barrier; std::vector<Copy> copies; int bytes; const char *what, *file; int line; };
static std::vector<LateArrival> late;
static std::vector<Fiber *> at_mbarrier;

/* Where dynamic shared memory begins: at a multiple of 128, and of no more. */
unsigned shared_address(const void *p) {
    const unsigned char *c = (const unsigned char *)p;
    if (!dynamic_bytes || c < dynamic_shared || c > dynamic_shared + dynamic_bytes)
        fail("the address of %p, which is not dynamic shared memory of this block", p);
    return 1024 + 128 + (unsigned)(c - dynamic_shared);
}

/* What is at p's place in the shared memory of the cluster's block `rank`. */
static unsigned char *in_block(unsigned rank, const void *p, const char *what, const char *file, int line) {
    if (rank >= n_blocks || alive_in[rank] == 0) fail("%s in %s:%d: the cluster's block %u has ended, or there is none", what, file, line, rank);
    return dynamic_of[rank] + ((const unsigned char *)p - dynamic_shared);
}

static Mbarrier get(const uint64_t *b, const char *what, const char *file, int line) {
    bool there = is_shared(b, 8);
    for (unsigned i = 0; i < n_blocks; i++)
        there |= dynamic_bytes && (const unsigned char *)b >= dynamic_of[i] && (const unsigned char *)(b + 1) <= dynamic_of[i] + dynamic_bytes;
    if ((uintptr_t)b % 8 || !there || (*b & ANY_MBARRIER) != IS_MBARRIER)
        fail("%s in %s:%d: %p is no mbarrier of this block", what, file, line, (const void *)b);
    const int lowest = MBARRIER_COUNTS - 1;
    return {(int)(*b >> 11) & lowest, (int)*b & lowest, (int)(*b >> 22) & 1, (int)(*b >> 23 & 0x1fffff) - MOST_BYTES};
}

static void put(uint64_t *b, const Mbarrier &m) {
    *b = IS_MBARRIER | (uint64_t)(m.bytes + MOST_BYTES) << 23 | (uint64_t)m.parity << 22 | (uint64_t)m.count << 11 | (uint64_t)m.left;
}

void mbarrier_init(uint64_t *b, int count, const char *file, int line) {
    if ((uintptr_t)b % 8 || !is_shared(b, 8) || count < 1 || count >= MBARRIER_COUNTS)
        fail("mbarrier.init in %s:%d of %p for %d", file, line, (void *)b, count);
    put(b, {count, count, 0, 0});
}

/* So many arrivals and bytes come (bytes < 0: are expected).  The phase ends when none is missing. */
static void arrive_at(uint64_t *b, int arrivals, int bytes, const char *what, const char *file, int line) {
    Mbarrier m = get(b, what, file, line);
    m.left -= arrivals;
    m.bytes -= bytes;
    if (m.left < 0 || m.bytes > MOST_BYTES || m.bytes < -MOST_BYTES || (m.left == 0 && m.bytes < 0))
        fail("%s in %s:%d: more arrivals or bytes than the mbarrier's phase has", what, file, line);
    if (m.left == 0 && m.bytes == 0) {
        m.left = m.count;
        m.parity ^= 1;
        if (watching) watch_phase(b);
        for (size_t i = at_mbarrier.size(); i-- > 0;)
            if (at_mbarrier[i]->mbarrier == b) {
                wake(at_mbarrier[i]);
                at_mbarrier[i] = at_mbarrier.back();
                at_mbarrier.pop_back();
            }
        idle_yields = 0;
    }
    put(b, m);
}

void mbarrier_arrive(uint64_t *b, const char *file, int line) {
    if (watching) watch_arrive(b, me()->linear);
    arrive_at(b, 1, 0, "mbarrier.arrive", file, line);
}

void mbarrier_arrive_at(uint64_t *b, int rank, const char *file, int line) {
    mbarrier_arrive((uint64_t *)in_block((unsigned)rank, b, "mbarrier.arrive", file, line), file, line);
}

void mbarrier_expect(uint64_t *b, int bytes, const char *file, int line) {
    if (bytes < 0) fail("mbarrier.expect_tx in %s:%d of %d bytes", file, line, bytes);
    arrive_at(b, 0, -bytes, "mbarrier.expect_tx", file, line);
}

/* One of them comes; false: there is none. */
static bool late_arrival() {
    if (late.empty()) return false;
    size_t i = random((unsigned)late.size());
    LateArrival a = std::move(late[i]);
    late.erase(late.begin() + (long)i);
    for (const Copy &c : a.copies)
        if (!c.done) copy_now(c);
    arrive_at(a.barrier, a.bytes == 0, a.bytes, a.what, a.file, a.line);
    return true;
}

void mbarrier_arrive_copies(uint64_t *b, const char *file, int line) {
    get(b, "cp.async.mbarrier.arrive", file, line);
    if (watching) watch_arrive(b, me()->linear);
    late.push_back({b, std::move(me()->copies), 0, "cp.async.mbarrier.arrive", file, line});
    me()->copies.clear();
    if (random(4) == 0) late_arrival();
}

/* Copies a box to the blocks whose bits are set; by chance the bytes are there at once, and the barrier always hears later. */
void copy_box(void *smem, const void *where, int x, int y, uint64_t *b, unsigned blocks, const char *file, int line) {
    static const char what[] = "cp.async.bulk.tensor";
    CUtensorMap map;
    memcpy(&map, where, sizeof map);
    if (map.mark != IS_MAP) fail("%s in %s:%d: %p is no tensor map", what, file, line, where);
    const unsigned bytes = map.box_bytes * map.box_rows;
    if (!is_shared(smem, bytes) || shared_address(smem) % (map.swizzle ? 1024 : 128) || x < 0)
        fail("%s in %s:%d: a box of %u bytes from column %d to %p, unaligned or not shared memory of this block", what, file, line, bytes, x, smem);
    for (unsigned rank = 0; rank < 32; rank++) {
        if (!(blocks >> rank & 1)) continue;
        unsigned char *to = in_block(rank, smem, what, file, line);
        const bool now = random(2);
        std::vector<Copy> copies;
        for (unsigned i = 0; i < bytes / 16; i++) {
            const long long row = y + (long long)(i / (map.box_bytes / 16)), at = x + (long long)(i % (map.box_bytes / 16) * 16);
            const bool inside = row >= 0 && row < (long long)map.rows;
            const int n = inside ? (int)std::max(0ll, std::min(16ll, (long long)map.bytes - at)) : 0;
            const unsigned place = map.swizzle ? i ^ (i / 8 % 8) : i;
            copies.push_back({to + 16 * place, n ? map.data + row * (long long)map.pitch + at : nullptr, 16, n, 0, now});
            if (n) watch(copies.back().from, (size_t)n, READ);
            watch(copies.back().to, 16, WRITE);
            if (now) copy_now(copies.back());
        }
        uint64_t *barrier = (uint64_t *)in_block(rank, b, what, file, line);
        get(barrier, what, file, line);
        if (watching) watch_arrive(barrier, me()->linear);
        late.push_back({barrier, std::move(copies), (int)bytes, what, file, line});
    }
    if (random(2) == 0) late_arrival();
}

/* The next phase, too, may end before a thread that was woken looks again: it then goes on waiting. */
void mbarrier_wait(uint64_t *b, int parity, const char *file, int line) {
    Fiber *f = me();
    if (random(8) == 0) late_arrival();
    while (get(b, "mbarrier.try_wait", file, line).parity == parity) {
        f->what = "mbarrier.try_wait", f->file = file, f->line = line, f->mbarrier = b;
        f->state = AT_MBARRIER;
        at_mbarrier.push_back(f);
        suspend();
    }
    if (watching) watch_behind(b, f->linear);
}

/* ---- wgmma ---- */

struct Multiplication { Wgmma lane[32]; unsigned group; };
struct Multiplications { std::vector<Multiplication> under_way; unsigned group; bool fenced; };
static Multiplications multiplications[MAX_THREADS / 32];

static Multiplications *mine(unsigned lanes, const char *what, const Wgmma *w) {
    unsigned first = me()->linear % block_threads / 128 * 128;
    if (lanes != 0xffffffff || first + 128 > block_threads)
        fail("%s in %s:%d: not a whole warpgroup", what, w->file, w->line);
    return &multiplications[me()->linear / 32];
}

/* Where b begins and how far eight of its rows go, in addresses of shared memory. */
static unsigned start_of(uint64_t b) { return (unsigned)(b & 0x3fff) << 4; }
static unsigned eight_rows_of(uint64_t b) { return (unsigned)(b >> 32 & 0x3fff) << 4; }
static const unsigned char *place_of(unsigned address) {
    return dynamic_shared + address - shared_address(dynamic_shared);
}

/* EMU_MMA=truncate, below. */
static bool truncates();
static float cut_sum(float sum, const float *a, const float *b, int n, int stride, int keep);

/* d [16][n] += a [16][16] b [16][n], the warp's part. */
UNCHECKED static void perform(const Multiplication &m) {
    typedef float Row __attribute__((vector_size(32), may_alias));
    const Wgmma *w = &m.lane[0];
    const unsigned start = start_of(w->b), eight = eight_rows_of(w->b);
    alignas(32) float b[16][256], a[16][16];
    for (int j = 0; j < w->n; j++)
        for (unsigned k = 0; k < 16; k++) {
            unsigned at = start + (unsigned)j / 8 * eight + (unsigned)j % 8 * 128 + 2 * k;
            const unsigned char *p = place_of(at ^ (at >> 7 & 7) << 4);
            if (k % 8 == 0) watch(p, 16, READ);
            b[k][j] = bf16_to_float(*(const uint16_t *)p);
        }
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < 4; i++)
            for (int e = 0; e < 2; e++)
                a[lane / 4 + i % 2 * 8][lane % 4 * 2 + i / 2 * 8 + e] =
                    bits<float>(m.lane[lane].a[i] >> 16 * e << 16);
    for (int r = 0; r < 16; r++)
        for (int j = 0; j < w->n; j += 8) {
            Row sum = {};
            for (int k = 0; k < 16; k++) sum += a[r][k] * *(const Row *)&b[k][j];
            for (int i = 0; i < 8; i++) {
                float *d = m.lane[r % 8 * 4 + i / 2].d + j / 2 + r / 8 * 2 + i % 2;
                *d = truncates() ? cut_sum(*d, a[r], &b[0][j + i], 16, 256, 25) : *d + sum[i];
            }
        }
}

/* Those of all groups but the newest `pending`. */
static void perform(Multiplications *m, int pending) {
    size_t n = 0;
    while (n < m->under_way.size() && (int)(m->group - m->under_way[n].group) > pending)
        perform(m->under_way[n++]);
    m->under_way.erase(m->under_way.begin(), m->under_way.begin() + (long)n);
}

void finish_wgmma(unsigned lanes, void *const *frame) {
    Multiplication job;
    const Wgmma *w = (const Wgmma *)frame[0];
    Multiplications *m = mine(lanes, "wgmma.mma_async", w);
    for (int i = 0; i < 32; i++) {
        job.lane[i] = *(const Wgmma *)frame[i];
        if (job.lane[i].b != w->b || job.lane[i].n != w->n)
            fail("wgmma.mma_async in %s:%d: lanes differ", w->file, w->line);
    }
    const unsigned start = start_of(w->b), eight = eight_rows_of(w->b);
    const size_t bytes = (size_t)(w->n / 8 - 1) * eight + 1024;
    if (w->b >> 62 != 1 || (start & 1023) > 96 || eight % 1024 ||
        !is_shared(place_of(start & ~127u), bytes))
        fail("wgmma.mma_async in %s:%d: no matrix at %#llx", w->file, w->line,
             (unsigned long long)w->b);
    if (!m->fenced) fail("wgmma.mma_async in %s:%d without a wgmma.fence before", w->file, w->line);
    job.group = m->group;
    m->under_way.push_back(job);
    if (random(2)) perform(m, -1);
}
void finish_wgmma_fence(unsigned lanes, void *const *frame) {
    mine(lanes, "wgmma.fence", (const Wgmma *)frame[0])->fenced = true;
}
void finish_wgmma_commit(unsigned lanes, void *const *frame) {
    mine(lanes, "wgmma.commit_group", (const Wgmma *)frame[0])->group++;
}
void finish_wgmma_wait(unsigned lanes, void *const *frame) {
    const Wgmma *w = (const Wgmma *)frame[0];
    Multiplications *m = mine(lanes, "wgmma.wait_group", w);
    perform(m, w->pending);
    m->fenced = false;
}

static void forget_async() {
    late.clear();
    at_mbarrier.clear();
    for (Multiplications &m : multiplications) m.under_way.clear(), m.group = 0, m.fenced = false;
}

/* ---- ldmatrix, mma ---- */

void finish_ldmatrix(unsigned lanes, void *const *frame) {
    const Matrix *first = (const Matrix *)frame[__builtin_ctz(lanes)];
    if (lanes != 0xffffffff) fail("ldmatrix in %s:%d with lanes %08x of 32", first->file, first->line, lanes);
    for (int i = 0; i < first->count; i++) {
        uint16_t m[8][8];
        for (int r = 0; r < 8; r++) {
            const void *row = ((const Matrix *)frame[8 * i + r])->row;
            if ((uintptr_t)row % 16) fail("ldmatrix in %s:%d, lane %d: unaligned row %p", first->file, first->line, 8 * i + r, row);
            if (!is_shared(row, 16)) fail("ldmatrix in %s:%d, lane %d: %p is not in shared memory of this block", first->file, first->line, 8 * i + r, row);
            watch(row, 16, READ);
            memcpy(m[r], row, 16);
        }
        for (int lane = 0; lane < 32; lane++) {
            const Matrix *l = (const Matrix *)frame[lane];
            if (l->count != first->count || l->trans != first->trans) fail("ldmatrix in %s:%d and another kind in %s:%d", first->file, first->line, l->file, l->line);
            int g = lane >> 2, t = lane % 4;
            l->r[i] = l->trans ? m[2 * t][g] | (unsigned)m[2 * t + 1][g] << 16 : m[g][2 * t] | (unsigned)m[g][2 * t + 1] << 16;
        }
    }
}

/* EMU_MMA=truncate: sums as tensor cores make them.  A block of products, and what they are added to, is aligned to the largest
 * exponent among them; what then lies below the last of float's bits, but for a few extra ones, is cut off, and so is what the
 * sum has beyond 24 bits.  The blocks follow one another.  After M. Fasi, N. Higham, M. Mikaitis, S. Pranesh, "Numerical behavior of
 * NVIDIA tensor cores", PeerJ Computer Science 7:e330 (2021), and F. Khattak, M. Mikaitis, "Accurate models of NVIDIA tensor cores",
 * arXiv:2512.07004: products are exact; A100 takes 8 of 16 bits at once and keeps one bit more, H100 and B200 16 and two.  Those of
 * FP8 keep 13 bits behind the point on Hopper (DeepSeek-AI, "DeepSeek-V3 technical report", arXiv:2412.19437, section 3.3.2). */
static bool truncating;
static bool truncates() { return truncating; }

/* sum + the products of n numbers of 16 bits or fewer, `stride` apart in b; `keep` bits stay behind the point of the largest. */
UNCHECKED static float cut_sum(float sum, const float *a, const float *b, int n, int stride, int keep) {
    double term[33], most = fabs((double)sum), check = sum;
    term[n] = sum;
    for (int i = 0; i < n; i++) {
        term[i] = (double)a[i] * b[i * stride];         /* exact: at most 24 bits */
        most = std::max(most, fabs(term[i]));
        check += term[i];
    }
    if (!std::isfinite(check) || most == 0) return (float)check;
    const int e = std::ilogb(most);
    const double up = std::ldexp(1., keep - e);
    long long all = 0;
    for (int i = 0; i <= n; i++) all += (long long)(term[i] * up);      /* towards zero */
    unsigned long long size = all < 0 ? 0 - (unsigned long long)all : (unsigned long long)all;
    if (size >> 24) size &= ~0ull << (40 - __builtin_clzll(size));      /* the 24 highest bits */
    return (float)std::ldexp(all < 0 ? -(double)size : (double)size, e - keep);
}

template <int K> static void add_truncated(void *const *frame, const float (*a)[K], const float (*b)[8]) {
    const bool hopper = can_overlap();
    const int block = K == 32 ? 32 : hopper ? 16 : 8, keep = K == 32 ? 13 : hopper ? 25 : 24;
    for (int r = 0; r < 16; r++)
        for (int c = 0; c < 8; c++) {
            float *d = (float *)((const Product *)frame[r % 8 * 4 + c / 2])->d + r / 8 * 2 + c % 2;
            for (int k = 0; k < K; k += block) *d = cut_sum(*d, a[r] + k, b[k] + c, block, 8, keep);
        }
}
template <int K> static void add_truncated(void *const *, const int (*)[K], const int (*)[8]) {}

/* d += A [16][K] B [K][8].  Each register holds E neighbours along K; registers 0 and 1 of A are rows g and g + 8 of the
 * first half of K, 2 and 3 of the second; those of B the halves.  scale: what still happens to A and B. */
template <class T, int K, class F, class S>
UNCHECKED static void multiply(unsigned lanes, void *const *frame, F element, S scale) {
    typedef T Row __attribute__((vector_size(8 * sizeof(T)), may_alias));
    const int E = K / 8, width = 32 / E, ROWS = 4;
    if (lanes != 0xffffffff) fail("mma with lanes %08x of 32", lanes);
    alignas(64) T a[16][K], b[K][8];
    for (int lane = 0; lane < 32; lane++) {
        const Product *p = (const Product *)frame[lane];
        const int g = lane / 4, k = lane % 4 * E;
#pragma GCC unroll 4
        for (int e = 0; e < E; e++) {
            a[g][k + e] = element(p->a[0] >> e * width);
            a[g + 8][k + e] = element(p->a[1] >> e * width);
            a[g][K / 2 + k + e] = element(p->a[2] >> e * width);
            a[g + 8][K / 2 + k + e] = element(p->a[3] >> e * width);
            b[k + e][g] = element(p->b[0] >> e * width);
            b[K / 2 + k + e][g] = element(p->b[1] >> e * width);
        }
    }
    scale(a, b);
    if (truncating && std::is_same<T, float>::value) {
        add_truncated<K>(frame, a, b);
        return;
    }
    for (int r = 0; r < 16; r += ROWS) {
        Row sum[ROWS] = {};
        for (int k = 0; k < K; k++) {
            const Row row = *(const Row *)b[k];
#pragma GCC unroll 4
            for (int i = 0; i < ROWS; i++) sum[i] += a[r + i][k] * row;
        }
        for (int i = 0; i < ROWS; i++)
            for (int t = 0; t < 4; t++) {
                T *d = (T *)((const Product *)frame[(r + i) % 8 * 4 + t])->d + (r + i) / 8 * 2;
                d[0] += sum[i][2 * t];
                d[1] += sum[i][2 * t + 1];
            }
    }
}

#define MMA(name, T, K, expression) \
    void name(unsigned lanes, void *const *frame) { \
        multiply<T, K>(lanes, frame, [](unsigned v) __attribute__((always_inline)) UNCHECKED { return expression; }, \
                       [](T(*)[K], T(*)[8]) {}); \
    }
MMA(finish_mma_bf16, float, 16, bits<float>(v << 16))
MMA(finish_mma_f16, float, 16, half_to_float((uint16_t)v))
MMA(finish_mma_s8, int, 32, (int)(int8_t)v)
MMA(finish_mma_e4m3, float, 32, fp8_to_float((uint8_t)v))

/* What a lane holds of an operand's scales: four along K. */
UNCHECKED static void scales_of(uint32_t bytes, float scale[4]) {
    if (bytes & 0x80808080) fail("mma with a block scale of %08x: UE4M3 has no sign", bytes);
    for (int i = 0; i < 4; i++) scale[i] = fp8_to_float((uint8_t)(bytes >> 8 * i));
}

void finish_mma_nvf4(unsigned lanes, void *const *frame) {
    auto element = [](unsigned v) __attribute__((always_inline)) UNCHECKED { return fp4_to_float(v & 15); };
    multiply<float, 64>(lanes, frame, element, [frame](float (*a)[64], float (*b)[8]) UNCHECKED {
        float scale[4];
        for (int row = 0; row < 16; row++) {
            int from = row % 8 * 4 + 2 * ((const Scaled *)frame[0])->pair + row / 8;
            scales_of(((const Scaled *)frame[from])->scale_a, scale);
            for (int k = 0; k < 64; k++) a[row][k] *= scale[k / 16];
        }
        for (int col = 0; col < 8; col++) {
            scales_of(((const Scaled *)frame[col * 4 + ((const Scaled *)frame[0])->lane])->scale_b, scale);
            for (int k = 0; k < 64; k++) b[k][col] *= scale[k / 16];
        }
    });
}

/* ---- FP8, FP4 ---- */

uint8_t float_to_fp8(float x, bool e5m2, bool saturate) {
    const int mantissa = e5m2 ? 2 : 3, bias = e5m2 ? 15 : 7;
    const uint32_t largest = e5m2 ? 0x7b : 0x7e;
    uint32_t u = bits<uint32_t>(x), sign = u >> 24 & 0x80, a = u & 0x7fffffff, code;
    if (a > 0x7f800000) return 0x7f;
    if (bits<float>(a) < std::ldexp(1.f, 1 - bias)) {                   /* subnormal */
        code = (uint32_t)nearbyintf(std::ldexp(bits<float>(a), bias - 1 + mantissa));
    } else {
        int drop = 23 - mantissa;
        a += (1u << (drop - 1)) - 1 + (a >> drop & 1);
        code = (a >> drop) - ((uint32_t)(127 - bias) << mantissa);
    }
    if (code > largest) code = saturate ? largest : e5m2 ? 0x7c : 0x7f;
    return (uint8_t)(sign | code);
}

uint16_t fp8_to_half(uint8_t b, bool e5m2) {
    if (e5m2) return (b & 0x7f) > 0x7c ? 0x7fff : (uint16_t)(b << 8);
    if ((b & 0x7f) == 0x7f) return 0x7fff;
    uint16_t sign = (uint16_t)((b & 0x80) << 8), e = b >> 3 & 15, m = b & 7;
    return sign | (e ? (uint16_t)((e + 8) << 10 | m << 7) : float_to_half((float)m / 512));
}

uint8_t float_to_fp4(float x) {
    if (std::isnan(x)) return 7;
    float a = fabsf(x);
    uint8_t code = a <= .25f ? 0 : a < .75f ? 1 : a <= 1.25f ? 2 : a < 1.75f ? 3 : a <= 2.5f ? 4 : a < 3.5f ? 5 : a <= 5 ? 6 : 7;
    return (uint8_t)(code | (std::signbit(x) ? 8 : 0));
}

/* ---- running a kernel ---- */

static void list_waiting(unsigned from, unsigned to) {
    const Fiber *f = &fibers[from];
    fprintf(stderr, "  thread");
    from + 1 == to ? fprintf(stderr, " %u", from) : fprintf(stderr, "s %u-%u", from, to - 1);
    if (f->state == IN_WARP) {
        const Warp *w = &warps[from / 32];
        unsigned arrived = 0;
        for (int i = 0; i < w->n_meetings; i++)
            if (w->meeting[i].mask == f->mask) arrived = w->meeting[i].arrived;
        fprintf(stderr, ": in %s of %s:%d, mask %08x, for lanes %08x of warp %u\n", f->what, f->file, f->line, f->mask, f->mask & w->alive & ~arrived, from / 32);
    } else if (f->state == AT_BARRIER) {
        const Barrier *b = f->barrier;
        fprintf(stderr, ": at %s of %s:%d", f->what, f->file, f->line);
        if (!is_whole(b)) fprintf(stderr, ", barrier %d", (int)((b - barriers) % MAX_BARRIERS));
        fprintf(stderr, ", for %u more\n", (b->need ? b->need : *b->alive) - b->n - b->passed);
    } else if (f->state == AT_MBARRIER) {
        const Mbarrier m = get(f->mbarrier, f->what, f->file, f->line);
        fprintf(stderr, ": at %s of %s:%d, for %d more and %d bytes\n", f->what, f->file, f->line, m.left, m.bytes);
    } else {
        fprintf(stderr, f->state == DONE ? ": returned\n" : ": can run\n");
    }
}

static void deadlock() {
    fflush(stdout);
    fprintf(stderr, "emu: ");
    self = nullptr;
    print_place();
    fprintf(stderr, "no thread can go on (threads by their number in the block, or the cluster)\n");
    unsigned from = 0;
    for (unsigned i = 1; i <= n_threads; i++) {
        const Fiber *a = &fibers[from], *b = &fibers[i];
        if (i < n_threads && a->state == b->state && (a->state == DONE || (a->line == b->line && a->what == b->what &&
                (a->state == AT_BARRIER ? a->barrier == b->barrier : a->mask == b->mask && a->linear / 32 == b->linear / 32)))) continue;
        list_waiting(from, i);
        from = i;
    }
    abort();
}

static void finished(Fiber *f) {
    if (!f->copies.empty()) {
        for (const Copy &c : f->copies) perform(c);
        f->copies.clear();
    }
    f->state = DONE;
    if (watching) watch_return(f->linear);
    n_alive--;
    if (--alive_in[f->rank] == 0)
        for (const LateArrival &a : late)
            if (a.bytes && (unsigned char *)a.barrier >= dynamic_shared && (unsigned char *)a.barrier < dynamic_shared + dynamic_bytes)
                fail("the block ends, and %s of %s:%d is still under way", a.what, a.file, a.line);
    idle_yields = 0;
    Warp *w = &warps[f->linear / 32];
    w->alive &= ~(1u << f->linear % 32);
    for (int i = w->n_meetings; i-- > 0;)
        if (complete(w, &w->meeting[i])) conclude(w, i, 0);
    Barrier *own = &barriers[f->rank * MAX_BARRIERS];
    if (complete(own) && !own->need) release(own);
    if (complete(cluster_barrier)) release(cluster_barrier);
}

/* Runs threads on one stack, one after another as long as none of them waits. */
UNCHECKED static void worker() {
    arrive(nullptr);
    for (;;) {
        running->thread(running->call.get());
        Fiber *f = me();
        Stack *stack = f->stack;
        finished(f);
        while (n_alive && n_ready + n_fresh == 0 && late_arrival()) {}
        unsigned n = n_ready + n_fresh;
        if (n == 0) {
            if (n_alive) deadlock();
            idle_stacks[n_idle_stacks++] = stack;
            leave(&f->context, &main_context, nullptr, main_stack, main_stack_size);
        }
        unsigned i = draw(n);
        if (i >= n_ready) {
            f = take(fresh, &n_fresh, i - n_ready);
            f->stack = stack;
            f->state = ACTIVE;
            turn_to(f);
            continue;
        }
        Fiber *next = take(ready, &n_ready, i);
        idle_stacks[n_idle_stacks++] = stack;   /* nobody can take it before this one has left it */
        turn_to(next);
        leave(&f->context, &next->context, nullptr, next->stack->low, next->stack->size);
    }
}

/* The cluster whose first block is blockIdx. */
static void run_cluster() {
    epoch++;
    shared_places.clear();
    shared_bytes = 0;
    first_block = blockIdx.x;
    here = 0;
    dynamic_shared = dynamic_of[0];
    for (unsigned i = 0; i < n_blocks; i++) {
        alive_in[i] = block_threads;
        if (dynamic_bytes) memset(dynamic_of[i], GARBAGE, dynamic_bytes);
    }
    n_ready = 0;
    n_fresh = n_alive = n_threads;
    idle_yields = 0;
    slow_warp = n_threads > 32 ? random((n_threads + 31) / 32 * 2) : 1;
    for (unsigned i = 0; i < n_threads; i++) {
        fresh[i] = &fibers[i];
        fibers[i].state = FRESH;
        fibers[i].group = 0;
        fibers[i].waited = false;
    }
    for (unsigned i = 0; i < (n_threads + 31) / 32; i++) {
        unsigned count = n_threads - i * 32;
        warps[i].alive = count < 32 ? (1u << count) - 1 : 0xffffffff;
        warps[i].at_barrier = 0;
        warps[i].n_meetings = 0;
    }
    for (Barrier &b : barriers) b.passed = 0;
    if (watching) watch_cluster();
    forget_async();
    Fiber *f = take(fresh, &n_fresh, random(n_fresh));
    f->stack = take_stack();
    f->state = ACTIVE;
    turn_to(f);
    from_main = true;
    void *fake_stack;
    leave(&main_context, &f->stack->start, &fake_stack, f->stack->low, f->stack->size);
    arrive(fake_stack);
    self = nullptr;
}

void run_grid(const Launch &l, const std::vector<unsigned> &ahead) {
    static unsigned threads_of[4];
    const char *mma = getenv("EMU_MMA");
    truncating = mma && !strcmp(mma, "truncate");
    running = &l;
    gridDim = l.grid;
    grid_waits = 0;
    block_threads = l.block.x * l.block.y * l.block.z;
    n_blocks = l.cluster;
    n_threads = n_blocks * block_threads;
    if (!barriers[0].waiting)
        for (unsigned i = 0; i < ALL_BARRIERS; i++) {
            barriers[i].waiting = lists[1 + i];
            barriers[i].alive = i / MAX_BARRIERS < MAX_CLUSTER ? &alive_in[i / MAX_BARRIERS] : &n_alive;
        }
    if (threads_of[0] != l.block.x || threads_of[1] != l.block.y || threads_of[2] != l.block.z || threads_of[3] != n_blocks) {
        threads_of[0] = l.block.x, threads_of[1] = l.block.y, threads_of[2] = l.block.z, threads_of[3] = n_blocks;
        for (unsigned i = 0; i < n_threads; i++) {
            const unsigned k = i % block_threads;
            fibers[i].linear = i;
            fibers[i].rank = i / block_threads;
            fibers[i].index = {k % l.block.x, k / l.block.x % l.block.y, k / l.block.x / l.block.y};
        }
    }
    blockDim = l.block;
    dynamic_bytes = l.shared;
    if (watching) watch_launch(l.name, l.dependent ? ahead : std::vector<unsigned>());
    for (unsigned i = 0; i < n_blocks; i++) {
        dynamic_of[i] = watching ? watched_dynamic(l.shared, i) : (unsigned char *)exact(l.shared ? l.shared : 1, 128);
#ifdef EMU_ASAN
        if (!l.shared) ASAN_POISON_MEMORY_REGION(dynamic_of[i], 1);
#endif
    }
    unsigned long long n = (unsigned long long)l.grid.x * l.grid.y * l.grid.z / n_blocks;
    std::vector<unsigned> order(n);
    for (unsigned i = 0; i < n; i++) order[i] = i;
    for (unsigned left = (unsigned)n; left > 0; left--) {
        unsigned k = random(left), b = order[k];
        order[k] = order[left - 1];
        b *= n_blocks;
        blockIdx = {b % l.grid.x, b / l.grid.x % l.grid.y, b / l.grid.x / l.grid.y};
        run_cluster();
    }
    if (l.dependent && grid_waits < n * n_threads)
        fail("launched with programmatic dependent launch, but of its %llu threads some do not call ptx_grid_wait (%llu calls)", n * n_threads, grid_waits);
    for (unsigned i = 0; i < n_blocks && !watching; i++) free(dynamic_of[i]);
    dynamic_shared = nullptr;
    dynamic_bytes = 0;
    running = nullptr;
}

/* What a compiler calls, with -fsanitize=alignment, before an access to an address that its type does not allow.  Weak: with
 * -fsanitize=undefined its own is there too. */
struct Mismatch { struct { const char *file; unsigned line, column; } place; const void *type; unsigned char log_align, access; };
static void unaligned(const Mismatch *m, const void *p) {
    static const char *const what[] = {"a load", "a store", "a reference", "a member", "a call"};
    fail("%s in %s:%u at %p, which is no multiple of %u", m->access < 5 ? what[m->access] : "an access", m->place.file, m->place.line, p, 1u << m->log_align);
}
extern "C" __attribute__((weak)) void __ubsan_handle_type_mismatch_v1(const Mismatch *m, const void *p) { unaligned(m, p); }
extern "C" __attribute__((weak)) void __ubsan_handle_type_mismatch_v1_abort(const Mismatch *m, const void *p) { unaligned(m, p); }

#ifdef EMU_ASAN
/* A fiber would get a second stack from AddressSanitizer for each block it runs, at the price of all speed. */
extern "C" __attribute__((weak)) const char *__asan_default_options() { return "detect_stack_use_after_return=0"; }

extern "C" void __asan_on_error() {
    if (!running) return;
    fprintf(stderr, "emu: ");
    print_place();
    fprintf(stderr, "AddressSanitizer reports:\n");
}
#endif

}
