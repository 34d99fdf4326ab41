# gemma4 - make, make demo, make test, make install.  Without nvcc the CPU program is built.

PREFIX ?= /usr/local
# Where the CUDA toolkit is: NVCC= (empty) builds without it.
NVCC ?= $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
CFLAGS ?= -O2 -g
# Debian's own, which sees Debian's packages.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)

WARNINGS = -Wall -Wextra
# What makes a mistake in the program harder to exploit, as far as the compiler knows it.  Not beside sanitizers: _FORTIFY_SOURCE
# hides calls from them; and it wants to optimize.
accepted = $(shell $(CC) $(1) -Werror -fsyntax-only -x c /dev/null 2> /dev/null && echo $(1))
HARDENED := $(foreach flag, -fstack-protector-strong -fstack-clash-protection -fcf-protection, $(call accepted, $(flag))) -fPIE
ifneq ($(if $(findstring -fsanitize, $(CFLAGS)),,$(filter-out -O0, $(filter -O%, $(CFLAGS)))),)
HARDENED += -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=2
endif
HARDENED_LINK = -pie -Wl,-z,relro,-z,now
ALL_CFLAGS = -std=gnu11 $(WARNINGS) -pthread $(HARDENED) $(CFLAGS)
LIBS = -lcjson -ledit -lm
# The CPU: attention.c, moe.c … beside the GPU's files of the same names, of which only GPU_OBJECTS become objects.
CPU = cpu.o offload.o handover.o slots.o multiply.o strips.o residual.o flash.o attention.o moe.o head.o \
      vision.o threads.o kernels.o kernels_c.o kernels_x86.o kernels_neon.o
ENGINE = model.o session.o cache.o saved.o checkpoint.o config.o lora.o fields.o safetensors.o directory.o \
         draft.o adapt.o plain.o $(CPU) tokenizer.o sampler.o chat.o answer.o call.o declare.o media.o ffmpeg.o image.o orient.o json.o \
         util.o sniff.o textfile.o schema.o objects.o arrays.o constants.o apart.o holds.o ranges.o strings.o places.o \
         keywords.o values.o document.o numbers.o states.o program.o stringset.o pattern.o \
         vocabulary.o
PROGRAM = main.o info.o options.o find.o repl.o edit.o markdown.o settings.o dropped.o transcript.o newfile.o jsonl.o request.o conversation.o tools.o \
          check.o guide.o generate.o score.o bench.o $(ENGINE)
TESTS = test_safetensors test_threads tsan_threads test_tokenizer test_sampler test_chat test_answer test_schema test_tools test_markdown test_slots test_image test_image_gpu \
        test_model test_draft test_draft_gpu test_emu test_gpu test_kernels test_fp4 \
        test_attention test_head test_fetch test_plan test_hand_over tsan_hand_over $(RACES)
RACES = race_emu race_kernels race_head race_image
PACKAGES = g++ libcjson-dev libstb-dev libedit-dev xz-utils
TEST_PACKAGES = libcmocka-dev python3-pytest python3-pexpect python3-pyte python3-jsonschema
EXTRA_PACKAGES = cppcheck clang clang-tidy libclang-rt-dev python3-venv ffmpeg
ifneq ($(shell uname -m), aarch64)      # what runs the kernels for ARM on another machine
EXTRA_PACKAGES += gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
endif

all: gemma4

GPU_OBJECTS = cuda.o fp4.o hopper.o
ifneq ($(NVCC),)
PROGRAM += $(GPU_OBJECTS)
CUDA_LIB = $(dir $(NVCC))../lib64
CUDA_LIBS = -L$(CUDA_LIB) -lcudart_static -ldl -lrt -l:libstdc++.a -static-libgcc
build/main.o: private ALL_CFLAGS += -DHAVE_CUDA
endif

# One binary: Ampere (with the desktop's and Ada), Hopper, Blackwell of the data centre (and B300), of Thor, of the desktop (and GB10).
# Machine code runs on later chips of the same generation; every other chip translates the PTX when the program first starts on it.
GENCODE = $(foreach sm, 80 90 100 110 120, -gencode arch=compute_$(sm),code=sm_$(sm)) $(foreach sm, 80 90, \
          -gencode arch=compute_$(sm),code=compute_$(sm))
NVCC_FLAGS = -std=c++17 -O3 $(GENCODE) --threads 0 -Xcompiler -Wall,-fPIE

# What needs instructions that only some chips have, in code for just these, has an object of its own.  100a has none that would gain
# anything: its FP4 products are of another kind, and see "The conversion from E2M1" in bench/gpu-predicted.md.
build/fp4.o: private GENCODE = $(foreach sm, 120a 121a, -gencode arch=compute_$(sm),code=sm_$(sm))
build/hopper.o: private GENCODE = -gencode arch=compute_90a,code=sm_90a

# build/cuda.ptxas, …: registers and spills of every kernel on every chip, for tests/test_gpu.py.  The rest is shown: warnings.
build/cuda.o build/fp4.o build/hopper.o: build/%.o: %.cu build/flags
	@echo '$(NVCC) $(NVCC_FLAGS) -c -o $@ $<'
	@$(NVCC) $(NVCC_FLAGS) -Xptxas -v -MD -c -o $@ $< 2> build/$*.ptxas; status=$$?; \
	grep -vE '^ptxas info +: [^(]|bytes stack frame' build/$*.ptxas >&2; exit $$status

gemma4: $(addprefix build/, $(PROGRAM))
	$(CC) $(ALL_CFLAGS) $(HARDENED_LINK) -o $@ $^ $(LIBS) $(CUDA_LIBS) $(LDFLAGS)

# The same logits must give the same token on every machine: no fused multiply-add that only some of them have.
build/sampler.o: private ALL_CFLAGS += -ffp-contract=off

# gcc for ARM moves loads so far ahead of the products that need them that the sums no longer fit
# the registers: without this flag, 8 x 8 x 8 products of gemm (kernels_neon.c) take 143 instructions,
# with it 113.
build/kernels_neon.o: private ALL_CFLAGS += $(call accepted, -fno-schedule-insns)

# stb_image lets sums overflow where an image is damaged.
build/image.o: private ALL_CFLAGS += -fwrapv

# The GPU's kernels, compiled for the CPU under the emulation of tests/emu; weights are loaded in blocks so small that there are many.
# Every access is checked for its type's alignment: emu.cpp has what the compiler calls.
ALIGNED = -fsanitize=alignment -fno-sanitize-recover=alignment
# Small blocks and small heads, so that the tests' checkpoints have several and a copy of theirs.
EMULATED = -DGEMMA4_EMU -DLOAD_BLOCK=50000 -DSCREEN_LEAST=1 -DFETCH_TOKENS=20
EMULATION = $(addprefix build/tests/, emu.o emu_runtime.o emu_watch.o)
# What a test that includes cuda.cu itself is linked with, and what others are.
BESIDE_CUDA = build/tests/fp4_emu.o build/tests/hopper_emu.o $(EMULATION)
EMU = build/tests/cuda_emu.o $(BESIDE_CUDA)
$(GPU_OBJECTS:%.o=build/tests/%_emu.o): build/tests/%_emu.o: %.cu build/flags
	$(CXX) -x c++ -std=c++17 $(WARNINGS) -Wno-unknown-pragmas $(EMULATED) $(ALIGNED) -I. $(CFLAGS) \
	  -MMD -c -o $@ $<

build/tests/%.o: tests/emu/%.cpp build/flags
	$(CXX) -std=c++17 $(WARNINGS) -I. $(CFLAGS) -MMD -c -o $@ $<

build/tests/test_gpu: tests/test_model.c
build/tests/test_draft_gpu: tests/test_draft.c
build/tests/test_image_gpu: tests/test_image.c
build/tests/test_gpu build/tests/test_draft_gpu build/tests/test_image_gpu: $(addprefix build/, $(ENGINE)) $(EMU) build/flags
	$(CC) $(ALL_CFLAGS) -DGPU -MMD -MF $@.d -o $@ $(filter %.c %.o, $^) -lcmocka $(LIBS) -lstdc++ $(LDFLAGS)

build/tests/test_kernels: tests/test_kernels.c $(addprefix build/, $(ENGINE)) $(EMU) build/flags
	$(CC) $(ALL_CFLAGS) -MMD -MF $@.d -o $@ $< $(addprefix build/, $(ENGINE)) $(EMU) -lcmocka $(LIBS) -lstdc++ $(LDFLAGS)

build/tests/test_attention: tests/test_attention.cpp $(addprefix build/, $(ENGINE)) $(BESIDE_CUDA) build/flags
	$(CXX) -std=c++17 $(WARNINGS) -Wno-unknown-pragmas -DGEMMA4_EMU $(ALIGNED) -I. $(CFLAGS) -MMD -MF $@.d -o $@ $(filter %.cpp %.o, $^) -lcmocka $(LIBS) $(LDFLAGS)

build/tests/test_fp4: tests/test_fp4.cpp $(addprefix build/, $(ENGINE)) $(EMU) build/flags
	$(CXX) -std=c++17 $(WARNINGS) -Wno-unknown-pragmas -DGEMMA4_EMU $(ALIGNED) -I. $(CFLAGS) -MMD -MF $@.d -o $@ $(filter %.cpp %.o, $^) -lcmocka $(LIBS) $(LDFLAGS)

build/tests/main_cuda.o: main.c build/flags
	$(CC) $(ALL_CFLAGS) -DHAVE_CUDA -MMD -c -o $@ $<

build/tests/gemma4_emu: build/tests/main_cuda.o $(addprefix build/, $(filter-out main.o $(GPU_OBJECTS), $(PROGRAM))) $(EMU)
	$(CC) $(ALL_CFLAGS) -o $@ $^ $(LIBS) -lstdc++ $(LDFLAGS)

build/tests/test_emu: tests/emu/test_emu.cpp $(EMULATION) build/flags
	$(CXX) -std=c++17 $(WARNINGS) -Wno-unknown-pragmas -DGEMMA4_EMU $(ALIGNED) -I. $(CFLAGS) -MMD -MF $@.d -o $@ $(filter %.cpp %.o, $^) -lcmocka $(LDFLAGS)

build/tests/test_head: tests/emu/test_head.cpp $(addprefix build/, $(ENGINE)) $(BESIDE_CUDA) build/flags
	$(CXX) -std=c++17 $(WARNINGS) -Wno-unknown-pragmas -DGEMMA4_EMU $(ALIGNED) -I. $(CFLAGS) -MMD -MF $@.d -o $@ $(filter %.cpp %.o, $^) -lcmocka $(LIBS) $(LDFLAGS)

build/tests/test_fetch: tests/emu/test_fetch.cpp $(addprefix build/, $(ENGINE)) $(EMULATION) build/flags
	$(CXX) -std=c++17 $(WARNINGS) -Wno-unknown-pragmas -Wno-unused-function $(EMULATED) $(ALIGNED) -I. $(CFLAGS) -MMD -MF $@.d -o $@ $(filter %.cpp %.o, $^) -lcmocka $(LIBS) $(LDFLAGS)

HAND_OVER_FLAGS = -std=c++17 $(WARNINGS) -Wno-unknown-pragmas -Wno-unused-function $(EMULATED) -I.
build/tests/test_hand_over: build/handover.o build/util.o $(EMULATION)
build/tests/test_hand_over: tests/emu/test_hand_over.cpp build/flags
	$(CXX) $(HAND_OVER_FLAGS) $(ALIGNED) $(CFLAGS) -MMD -MF $@.d -o $@ $(filter %.cpp %.o, $^) \
	  -lcmocka $(LIBS) $(LDFLAGS)

# The same under ThreadSanitizer.  The emulation itself is compiled without it, because it switches
# stacks, and of emu_watch.cpp only what does not take the sanitizer's place.
TSAN_FLAGS = -pthread -O1 -g -I. -MMD
TSAN_EMULATION = $(addprefix build/tests/tsan_, emu.o emu_runtime.o)
$(TSAN_EMULATION): build/tests/tsan_%.o: tests/emu/%.cpp build/flags
	g++ -std=c++17 $(WARNINGS) $(TSAN_FLAGS) -c -o $@ $<
build/tests/tsan_emu_watch.o: tests/emu/emu_watch.cpp build/flags
	g++ -std=c++17 $(WARNINGS) $(TSAN_FLAGS) -fsanitize=thread -c -o $@ $<
build/tests/tsan_handover.o build/tests/tsan_util.o: build/tests/tsan_%.o: %.c build/flags
	gcc -std=gnu11 $(WARNINGS) $(TSAN_FLAGS) -fsanitize=thread -c -o $@ $<

build/tests/tsan_hand_over: $(addprefix build/tests/tsan_, emu_watch.o handover.o util.o)
build/tests/tsan_hand_over: tests/emu/test_hand_over.cpp $(TSAN_EMULATION) build/flags
	g++ $(HAND_OVER_FLAGS) $(TSAN_FLAGS) -fsanitize=thread -MF $@.d -o $@ $(filter %.cpp %.o, $^) \
	  -lcmocka -lm

# It runs no kernel, and is compiled quickly.
build/tests/test_plan: tests/emu/test_plan.cpp $(addprefix build/, $(ENGINE)) $(BESIDE_CUDA) build/flags
	$(CXX) -std=c++17 $(WARNINGS) -Wno-unknown-pragmas -DGEMMA4_EMU -I. $(filter-out -O%, $(CFLAGS)) -MMD -MF $@.d -o $@ $(filter %.cpp %.o, $^) \
	-lcmocka $(LIBS) $(LDFLAGS)

# The same kernels, of which every access to memory is looked at: gcc calls tests/emu/emu_watch.cpp before each.
race: $(addprefix build/tests/, $(RACES))
	@for program in $^; do echo "== $$program"; $$program || exit 1; done

WATCHED = g++ -x c++ -std=c++17 $(WARNINGS) -Wno-unknown-pragmas $(EMULATED) -I. \
          $(filter-out -fsanitize=%, $(CFLAGS)) -fsanitize=thread -MMD -c -o $@
$(addprefix build/tests/race_, $(GPU_OBJECTS)): build/tests/race_%.o: %.cu build/flags
	$(WATCHED) $<

build/tests/race_%.o: tests/emu/test_%.cpp build/flags
	$(WATCHED) $<

build/tests/race_emu build/tests/race_head: build/tests/race_%: build/tests/race_%.o $(addprefix build/, $(ENGINE)) $(BESIDE_CUDA)
	$(CXX) $(CFLAGS) -o $@ $^ -lcmocka $(LIBS) $(LDFLAGS)

build/tests/race_kernels build/tests/race_image: build/tests/race_%: tests/test_%.c $(addprefix build/tests/race_, $(GPU_OBJECTS)) $(addprefix build/, $(ENGINE)) $(EMULATION)
	$(CC) $(ALL_CFLAGS) -DGPU -DONE_RUN -MMD -MF $@.d -o $@ $(filter %.c %.o, $^) -lcmocka $(LIBS) -lstdc++ $(LDFLAGS)

# What is checked and measured on a GPU, with the libraries beside it that a bare machine lacks (Debian has no static libcjson
# and libcmocka): build/gpu can be carried there as it is; then BUILT=1 keeps make from building.
GPU_PROGRAMS = $(addprefix build/gpu/, gemma4 bandwidth test_image test_model test_draft test_kernels test_fp4)
BESIDE = -Wl,--disable-new-dtags,-rpath,'$$ORIGIN/lib'
gpu: $(GPU_PROGRAMS)
	rm -rf build/gpu/lib && mkdir build/gpu/lib
	ldd $^ | sed -nE 's/.*lib(cjson|cmocka|edit|tinfo|bsd|md)\.so.* => ([^ ]+) .*/\2/p' | sort -u | xargs cp -t build/gpu/lib

gpu-check gpu-bench: gpu-%: $(if $(BUILT),,gpu)
	$(PYTHON) $(if $(filter check, $*),tests,bench)/gpu_$*.py $(ARGS)

# Both in ten minutes, into one file: for the first day with a GPU.
gpu-first-day: $(if $(BUILT),,gpu)
	$(PYTHON) bench/gpu_first_day.py $(ARGS)

build/gpu/gemma4: $(addprefix build/, $(PROGRAM))
	$(CC) $(ALL_CFLAGS) $(HARDENED_LINK) -o $@ $^ $(LIBS) $(CUDA_LIBS) $(BESIDE) $(LDFLAGS)

build/gpu/test_%: tests/test_%.c $(addprefix build/, $(ENGINE) $(GPU_OBJECTS)) build/flags
	$(CC) $(ALL_CFLAGS) -DGPU -MMD -MF $@.d -o $@ $(filter %.c %.o, $^) -lcmocka $(LIBS) $(CUDA_LIBS) $(BESIDE) $(LDFLAGS)

build/gpu/test_fp4.o: tests/test_fp4.cpp build/flags
	$(NVCC) -x cu -std=c++17 -O2 -arch=sm_120 -Xcompiler -Wall,-fPIE -I. -MD -c -o $@ $<

build/gpu/test_fp4: build/gpu/test_fp4.o $(addprefix build/, $(ENGINE) $(GPU_OBJECTS))
	$(CC) $(ALL_CFLAGS) -o $@ $^ -lcmocka $(LIBS) $(CUDA_LIBS) $(BESIDE) $(LDFLAGS)

build/gpu/bandwidth: bench/bandwidth.cu build/flags
	$(NVCC) $(NVCC_FLAGS) -Xcompiler -static-libstdc++,-static-libgcc -o $@ $<

build/%.o: %.c build/flags
	$(CC) $(ALL_CFLAGS) -Wconversion -MMD -c -o $@ $<

build/tests/test_markdown: build/markdown.o
build/tests/test_markdown: LIBS := build/markdown.o $(LIBS)

build/tests/test_tools: build/tools.o
build/tests/test_tools: LIBS := build/tools.o $(LIBS)

# The first includes threads.c itself; the second is the same under ThreadSanitizer.
build/tests/test_threads: tests/test_threads.c threads.c build/util.o build/flags
	$(CC) $(ALL_CFLAGS) -MMD -o $@ $< build/util.o -lcmocka -lm $(LDFLAGS)

build/tests/tsan_threads: tests/test_threads.c threads.c util.c build/flags
	$(CC) -std=gnu11 $(WARNINGS) -pthread -O1 -g -fsanitize=thread -MMD -MF $@.d -o $@ $< util.c -lcmocka -lm

build/tests/%: tests/%.c $(addprefix build/, $(ENGINE)) build/flags
	$(CC) $(ALL_CFLAGS) -MMD -o $@ $< $(addprefix build/, $(ENGINE)) -lcmocka $(LIBS) $(LDFLAGS)

# What reads other people's bytes, under libFuzzer: tests/fuzz/fuzz_X.c becomes build/fuzz_X.  A small MAX_PIXELS keeps images quick.
FUZZERS = $(patsubst tests/fuzz/%.c, build/%, $(wildcard tests/fuzz/fuzz_*.c))
FUZZ_FLAGS = -std=gnu11 -g -O1 -pthread -fsanitize=address,undefined -fno-sanitize-recover=undefined -DMAX_PIXELS=262144
fuzz: $(FUZZERS)

# All of them, SECONDS each; a new finding is a file beside build/corpus/X that build/fuzz_X takes as its argument.
fuzz-run: fuzz
	@$(PYTHON) tests/fuzz/run.py $(or $(SECONDS),20) $(FUZZERS)

# stb_image lets sums overflow, copies nothing from nowhere, and shifts by a word's width, where an image is damaged.
build/fuzz/image.o: private FUZZ_FLAGS += -fwrapv -fno-sanitize=nonnull-attribute,shift-exponent

# clang takes four minutes to instrument the kernels, to which no file gives a size that has not been checked.
build/fuzz/kernels_x86.o: private FUZZ_FLAGS := $(filter-out -fsanitize=% -fno-sanitize%, $(FUZZ_FLAGS))

build/fuzz/%.o: %.c Makefile
	@mkdir -p $(@D)
	clang $(FUZZ_FLAGS) -fsanitize=fuzzer-no-link -MMD -c -o $@ $<

$(FUZZERS): build/fuzz_%: tests/fuzz/fuzz_%.c $(addprefix build/fuzz/, $(filter-out main.o $(GPU_OBJECTS), $(PROGRAM)))
	clang $(FUZZ_FLAGS) -fsanitize=fuzzer -MMD -o $@ $(filter %.c %.o, $^) $(LIBS)

build/bench_%: bench/%.c $(addprefix build/, $(ENGINE)) build/flags
	$(CC) $(ALL_CFLAGS) -MMD -o $@ $< $(addprefix build/, $(ENGINE)) $(LIBS) $(LDFLAGS)

# Everything is built again when the compiler or its flags change.
build/flags: FORCE
	@mkdir -p build/tests build/gpu
	@echo '$(CC) $(ALL_CFLAGS) $(LDFLAGS) $(NVCC)' | cmp -s - $@ || echo '$(CC) $(ALL_CFLAGS) $(LDFLAGS) $(NVCC)' > $@

-include $(wildcard build/*.d build/tests/*.d build/gpu/*.d build/fuzz/*.d build/coverage/*.d)

# What building and testing needs and this machine lacks: installed by root, named to everybody else.
MISSING = missing=; for p in $(1); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done
APT_INSTALL = DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends
packages test-packages:
	@$(call MISSING, $(PACKAGES) $(if $(filter test-%, $@), $(TEST_PACKAGES))); \
	if [ -z "$$missing" ] || ! command -v apt-get >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ]; then echo "Missing packages; install them with: sudo apt-get install$$missing" >&2; exit 1; fi; \
	apt-get update -qq && $(APT_INSTALL) $$missing >/dev/null

# What a few tests want besides, and are skipped without: installed by root where it can be, asked of nobody else.
extra-packages: test-packages
	@$(call MISSING, $(EXTRA_PACKAGES)); \
	if [ -z "$$missing" ] || [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then exit 0; fi; apt-get update -qq; \
	for p in $$missing; do $(APT_INSTALL) $$p >/dev/null || true; done

demo: packages
	@$(MAKE) --no-print-directory gemma4
	./gemma4 -m demo --temp 0 "What is this program?" < /dev/null
	./gemma4 -m demo --temp 0 -i demo/two-shapes.png "What do you see?" < /dev/null

# The clients of tests/test_clients.py, from PyPI; where they cannot be had, its tests are skipped.
CLIENTS = openai==3.57.0 langchain-openai==1.7.4
clients: extra-packages
	@grep -qxs '$(CLIENTS)' build/venv/clients || \
	{ rm -rf build/venv && $(PYTHON) -m venv build/venv && timeout --foreground 300 \
	build/venv/bin/pip install --only-binary :all: --retries 1 --timeout 10 $(CLIENTS) && \
	echo '$(CLIENTS)' > build/venv/clients; } > /dev/null 2>&1 || true
.PHONY: clients

# As many compilers at once as there are processors, at least one.
JOBS := $(or $(shell nproc 2> /dev/null), 1)
test: extra-packages clients
	@$(MAKE) --no-print-directory -j$(JOBS) gemma4 build/tests/gemma4_emu $(addprefix build/tests/, $(TESTS))
	@PYTHON=$(PYTHON) tests/run $(addprefix build/tests/, $(TESTS))

# Which share of the lines of each C file the tests of the CPU run (tests/coverage).  Threads share the counters without atomics,
# which would make everything thirteen times slower; _exit leaves them behind as exit does (tests/exit.c).
COUNTED = $(filter-out test_threads test_image_gpu test_draft_gpu test_emu test_gpu test_kernels \
          test_fp4 test_attention test_head test_fetch test_plan \
          test_hand_over tsan_% race_%, $(TESTS))
COUNTING = gcc -std=gnu11 -O1 -g -pthread --coverage -fprofile-update=single -Wl,--wrap=_exit -MMD
coverage: test-packages
	@$(MAKE) --no-print-directory -s $(addprefix build/coverage/, gemma4 $(COUNTED))
	@PYTHON=$(PYTHON) tests/coverage $(addprefix build/coverage/, $(COUNTED))

build/coverage/%.o: %.c Makefile
	@mkdir -p $(@D)
	$(COUNTING) -c -o $@ $<

build/coverage/gemma4: $(addprefix build/coverage/, $(filter-out $(GPU_OBJECTS), $(PROGRAM)) tests/exit.o)
	$(COUNTING) -o $@ $^ $(LIBS)

build/coverage/test_%: tests/test_%.c $(addprefix build/coverage/, $(filter-out main.o $(GPU_OBJECTS), $(PROGRAM)) tests/exit.o)
	$(COUNTING) -o $@ $(filter %.c %.o, $^) -lcmocka $(LIBS)

install: gemma4
	install -d $(addprefix $(DESTDIR)$(PREFIX)/, bin $(addprefix share/, gemma4/demo/assistant man/man1 bash-completion/completions zsh/site-functions))
	install -m 755 gemma4 $(DESTDIR)$(PREFIX)/bin
	install -m 644 demo/*.* $(DESTDIR)$(PREFIX)/share/gemma4/demo
	install -m 644 demo/assistant/* $(DESTDIR)$(PREFIX)/share/gemma4/demo/assistant
	install -m 644 gemma4.1 $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 644 completion.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/gemma4
	install -m 644 completion.zsh $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_gemma4

clean:
	rm -rf build gemma4

FORCE:
.PHONY: all packages test-packages extra-packages demo test coverage race fuzz fuzz-run gpu gpu-check gpu-bench gpu-first-day install clean FORCE
