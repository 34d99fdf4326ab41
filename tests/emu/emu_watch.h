/* emu_watch.h - what the rest of the emulation tells emu_watch.cpp, and gets from it, while it watches.  See there. */
#ifndef EMU_WATCH_H
#define EMU_WATCH_H

#include "emu.h"

namespace emu {

/* Memory of the device, zero, and its end; a place for SHARED; and the dynamic shared memory of a
 * launch, for each block of a cluster. */
void *watched_memory(size_t bytes);
void forget_memory(void *p, size_t bytes);
void *watched_shared(size_t bytes);
unsigned char *watched_dynamic(size_t bytes, unsigned rank);

/* A kernel begins, and those that may still run; one of its clusters. */
void watch_launch(const char *name, const std::vector<unsigned> &ahead);
void watch_cluster();

/* A thread comes to a barrier, goes on behind it; the barrier is as new; a thread returns. */
void watch_come(unsigned barrier, unsigned thread);
void watch_leave(unsigned barrier, unsigned thread);
void watch_open(unsigned barrier);
void watch_return(unsigned thread);

/* A thread arrives at an mbarrier, or begins a copy that will; a phase ends; a thread goes on behind it. */
void watch_arrive(const void *mbarrier, unsigned thread);
void watch_phase(const void *mbarrier);
void watch_behind(const void *mbarrier, unsigned thread);

}

#endif
