# gemma4 - make, make demo, make test, make install.  Without nvcc the CPU program is built.

PREFIX ?= /usr/local
# Where the CUDA toolkit is: NVCC= (empty) builds without it.
NVCC ?= $(firstword $(shell command -v nvcc) $(wildcard /usr/local/cuda/bin/nvcc))
CFLAGS ?= -O2 -g
# Debian's own, which sees Debian's packages.
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)

WARNINGS = -Wall -Wextra
ALL_CFLAGS = -std=gnu11 $(WARNINGS) -pthread $(CFLAGS)
LIBS = -lcjson -ledit -lm
ENGINE = model.o cpu.o safetensors.o tokenizer.o sampler.o chat.o schema.o json.o util.o
PROGRAM = main.o repl.o jsonl.o tools.o generate.o $(ENGINE)
TESTS = test_safetensors test_tokenizer test_sampler test_chat test_model test_emu test_gpu
PACKAGES = g++ libcjson-dev libstb-dev libedit-dev libcmocka-dev python3-pytest python3-pexpect xz-utils

all: gemma4

ifneq ($(NVCC),)
PROGRAM += cuda.o
CUDA_LIB = $(dir $(NVCC))../lib64
build/main.o: ALL_CFLAGS += -DHAVE_CUDA
gemma4: LIBS += -L$(CUDA_LIB) -lcudart_static -ldl -lrt -lstdc++
endif

# One binary for Ampere, Hopper, Blackwell and their desktop and workstation relatives.
GENCODE = $(foreach sm, 80 90 100 120 121, -gencode arch=compute_$(sm),code=sm_$(sm)) -gencode arch=compute_80,code=compute_80
build/cuda.o: cuda.cu build/flags
	$(NVCC) -std=c++17 -O3 $(GENCODE) -Xcompiler -Wall -MD -c -o $@ $<

gemma4: $(addprefix build/, $(PROGRAM))
	$(CC) $(ALL_CFLAGS) -o $@ $^ $(LIBS) $(LDFLAGS)

# The same logits must give the same token on every machine: no fused multiply-add that only some of them have.
build/sampler.o: ALL_CFLAGS += -ffp-contract=off

# The GPU's kernels, compiled for the CPU under the emulation of tests/emu.
EMU = build/tests/cuda_emu.o build/tests/emu.o build/tests/emu_runtime.o
build/tests/cuda_emu.o: cuda.cu build/flags
	$(CXX) -x c++ -std=c++17 $(WARNINGS) -DGEMMA4_EMU -I. $(CFLAGS) -MMD -c -o $@ $<

build/tests/%.o: tests/emu/%.cpp build/flags
	$(CXX) -std=c++17 $(WARNINGS) -I. $(CFLAGS) -MMD -c -o $@ $<

build/tests/test_gpu: tests/test_model.c $(addprefix build/, $(ENGINE)) $(EMU) build/flags
	$(CC) $(ALL_CFLAGS) -DGPU -MMD -MF $@.d -o $@ $< $(addprefix build/, $(ENGINE)) $(EMU) -lcmocka $(LIBS) -lstdc++ $(LDFLAGS)

build/tests/test_emu: tests/emu/test_emu.cpp build/tests/emu.o build/tests/emu_runtime.o build/flags
	$(CXX) -std=c++17 $(WARNINGS) -Wno-unknown-pragmas -DGEMMA4_EMU -I. $(CFLAGS) -MMD -MF $@.d -o $@ $(filter %.cpp %.o, $^) -lcmocka $(LDFLAGS)

build/%.o: %.c build/flags
	$(CC) $(ALL_CFLAGS) -MMD -c -o $@ $<

build/tests/%: tests/%.c $(addprefix build/, $(ENGINE)) build/flags
	$(CC) $(ALL_CFLAGS) -MMD -o $@ $< $(addprefix build/, $(ENGINE)) -lcmocka $(LIBS) $(LDFLAGS)

# Everything is built again when the compiler or its flags change.
build/flags: FORCE
	@mkdir -p build/tests
	@echo '$(CC) $(ALL_CFLAGS) $(LDFLAGS)' | cmp -s - $@ || echo '$(CC) $(ALL_CFLAGS) $(LDFLAGS)' > $@

-include $(wildcard build/*.d build/tests/*.d)

# What building and testing needs and this machine lacks: installed by root, named to everybody else.
packages:
	@missing=; for p in $(PACKAGES); do dpkg -s $$p >/dev/null 2>&1 || missing="$$missing $$p"; done; \
	if [ -z "$$missing" ] || ! command -v apt-get >/dev/null; then exit 0; fi; \
	if [ "$$(id -u)" != 0 ]; then echo "Missing packages; install them with: sudo apt-get install$$missing" >&2; exit 1; fi; \
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing >/dev/null

demo: packages
	@$(MAKE) --no-print-directory gemma4
	./gemma4 --temp 0 "What is this program?" < /dev/null

test: packages
	@$(MAKE) --no-print-directory gemma4 $(addprefix build/tests/, $(TESTS))
	@PYTHON=$(PYTHON) tests/run $(addprefix build/tests/, $(TESTS))

install: gemma4
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/share/gemma4/demo
	install -m 755 gemma4 $(DESTDIR)$(PREFIX)/bin
	install -m 644 demo/* $(DESTDIR)$(PREFIX)/share/gemma4/demo

clean:
	rm -rf build gemma4

FORCE:
.PHONY: all packages demo test install clean FORCE
