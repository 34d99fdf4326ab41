/* exit.c - in the build that counts lines (make coverage): a signal that ends the program leaves its counters behind, too. */
void __gcov_dump(void);
void __real__exit(int status) __attribute__((noreturn));

void __wrap__exit(int status) __attribute__((noreturn));
void __wrap__exit(int status) {
    __gcov_dump();
    __real__exit(status);
}
