/* device.h - which device a test is about: the CPU, or, with -DGPU, the GPU (in build/tests the emulated one). */
#include "../ops.h"

#ifdef GPU
#define DEVICE cuda_ops
enum { ON_GPU = 1 };
#else
#define DEVICE cpu_ops
enum { ON_GPU = 0 };
#endif
