/* Two processes, one shared page: what a round trip costs when nothing but the hardware and the kernel is in the way.
 *
 *     pingpong spin|futex WARM_UP COUNT CPU_A CPU_B     (CPU -1: wherever the kernel likes)
 *
 * A message is 64 bytes, copied into the page before its sequence number is stored, and out of it after that was seen.
 * Prints COUNT round-trip times to stdout, as native int64 nanoseconds.
 */
#include "mailbox.h"

#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void pin(int cpu) {
    cpu_set_t set;
    if (cpu < 0) return;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) {
        perror("sched_setaffinity");
        exit(1);
    }
}

int main(int argc, char **argv) {
    if (argc != 6) {
        fprintf(stderr, "usage: %s spin|futex WARM_UP COUNT CPU_A CPU_B\n", argv[0]);
        return 2;
    }
    use_futex = strcmp(argv[1], "futex") == 0;
    const uint32_t warm_up = (uint32_t)atol(argv[2]), count = (uint32_t)atol(argv[3]), total = warm_up + count;
    unsigned char message[MESSAGE_BYTES] = {1};
    int64_t *times = calloc(total, sizeof *times);
    struct page *page = mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED || times == NULL) {
        perror("memory");
        return 1;
    }
    const pid_t child = fork();
    if (child == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        pin(atoi(argv[5]));
        for (uint32_t i = 1; i <= total; i++) {
            take(&page->ping, message, i);
            put(&page->pong, message, i);
        }
        _exit(0);
    }
    pin(atoi(argv[4]));
    for (uint32_t i = 1; i <= total; i++) {
        const int64_t began = now_ns();
        put(&page->ping, message, i);
        take(&page->pong, message, i);
        times[i - 1] = now_ns() - began;
    }
    waitpid(child, NULL, 0);
    return fwrite(times + warm_up, sizeof *times, count, stdout) == count ? 0 : 1;
}
