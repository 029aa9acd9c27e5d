/* Two processes, one shared page: what a round trip costs when nothing but the hardware and the kernel is in the way.
 *
 *     pingpong spin|futex WARM_UP COUNT CPU_A CPU_B     (CPU -1: wherever the kernel likes)
 *
 * A message is 64 bytes, copied into the page before its sequence number is stored, and out of it after that was seen.
 * Prints COUNT round-trip times to stdout, as native int64 nanoseconds.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { MESSAGE_BYTES = 64, APART = 128 };

struct mailbox {
    _Alignas(APART) _Atomic uint32_t sequence;
    _Alignas(APART) unsigned char message[MESSAGE_BYTES];
};

struct page {
    struct mailbox ping, pong;
};

static int use_futex;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void put(struct mailbox *box, const unsigned char *message, uint32_t sequence) {
    memcpy(box->message, message, MESSAGE_BYTES);
    atomic_store_explicit(&box->sequence, sequence, memory_order_release);
    if (use_futex) syscall(SYS_futex, &box->sequence, FUTEX_WAKE, 1, NULL, NULL, 0);
}

static void take(struct mailbox *box, unsigned char *message, uint32_t sequence) {
    uint32_t seen;
    while ((seen = atomic_load_explicit(&box->sequence, memory_order_acquire)) != sequence) {
        if (use_futex) syscall(SYS_futex, &box->sequence, FUTEX_WAIT, seen, NULL, NULL, 0);
    }
    memcpy(message, box->message, MESSAGE_BYTES);
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
