/* The ring and its waiting without Python: what the C core under the transport takes.
 *
 *     ring alone|pair WARM_UP COUNT CPU_A CPU_B     (CPU -1: wherever the kernel likes)
 *
 * alone: one thread sends 64 bytes and reads them at the other end. pair: two threads, 64 bytes there and back.
 * Prints COUNT times to stdout, as native int64 nanoseconds.
 */
#define _GNU_SOURCE
#include "core.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { MESSAGE_BYTES = 64, RING_BYTES = 1 << 18, MAX_MESSAGE_BYTES = 1 << 26, LONG_SECONDS = 60 };

typedef struct {
    eipc_waiter *waiter;
    eipc_link *link;
    uint32_t total;
    int cpu;
} side;

static void must(int holds, const char *what) {
    if (holds) return;
    perror(what);
    exit(1);
}

static int64_t deadline(void) { return eipc_now_ns() + (int64_t)LONG_SECONDS * 1000000000; }

static void make_pair(side *sides) {
    int fds[2];
    must(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) == 0, "socketpair");
    for (int i = 0; i < 2; i++) {
        must(eipc_waiter_create(&sides[i].waiter) == EIPC_OK, "waiter");
        must(eipc_link_create(sides[i].waiter, fds[i], RING_BYTES, MAX_MESSAGE_BYTES, MAX_MESSAGE_BYTES, &sides[i].link) == EIPC_OK, "link");
    }
    for (int i = 0; i < 2; i++) {
        side *other = &sides[1 - i];
        must(eipc_link_attach(sides[i].link, eipc_map_ref(other->link->mine), eipc_map_ref(other->waiter->board_map)) == EIPC_OK, "attach");
        must(eipc_waiter_add(sides[i].waiter, sides[i].link) == EIPC_OK, "add");
    }
}

static void put(side *self, const uint8_t *bytes) {
    const eipc_part part = {bytes, MESSAGE_BYTES};
    must(eipc_send(self->link, &part, 1, deadline()) == EIPC_OK, "send");
}

static void take(side *self, uint8_t *bytes) {
    eipc_link *ready = eipc_waiter_try(self->waiter);
    while (!ready) must(eipc_waiter_wait(self->waiter, deadline(), &ready) == EIPC_OK, "wait");
    eipc_message message;
    uint64_t offset = 0, length = 0;
    must(eipc_begin_read(ready, &message) == EIPC_OK, "read");
    must(eipc_read_length(&message, 0, &offset, &length) == EIPC_OK && length == MESSAGE_BYTES, "length");
    memcpy(bytes, message.body + offset, MESSAGE_BYTES);
    eipc_end_read(ready, &message);
}

static void pin(int cpu) {
    cpu_set_t set;
    if (cpu < 0) return;
    CPU_ZERO(&set);
    CPU_SET(cpu, &set);
    must(sched_setaffinity(0, sizeof set, &set) == 0, "sched_setaffinity");
}

static void *answer(void *argument) {
    side *self = argument;
    uint8_t bytes[MESSAGE_BYTES];
    pin(self->cpu);
    for (uint32_t i = 0; i < self->total; i++) {
        take(self, bytes);
        put(self, bytes);
    }
    return NULL;
}

int main(int argc, char **argv) {
    if (argc != 6) {
        fprintf(stderr, "usage: %s alone|pair WARM_UP COUNT CPU_A CPU_B\n", argv[0]);
        return 2;
    }
    const int alone = strcmp(argv[1], "alone") == 0;
    const uint32_t warm_up = (uint32_t)atol(argv[2]), count = (uint32_t)atol(argv[3]), total = warm_up + count;
    int64_t *times = calloc(total, sizeof *times);
    must(times != NULL, "memory");
    uint8_t bytes[MESSAGE_BYTES] = {1};
    side sides[2] = {{0}, {.total = total, .cpu = atoi(argv[5])}};
    make_pair(sides);
    pthread_t thread;
    if (!alone) must(pthread_create(&thread, NULL, answer, &sides[1]) == 0, "thread");
    pin(atoi(argv[4]));
    for (uint32_t i = 0; i < total; i++) {
        const int64_t began = eipc_now_ns();
        put(&sides[0], bytes);
        take(&sides[alone ? 1 : 0], bytes);
        times[i] = eipc_now_ns() - began;
    }
    if (!alone) pthread_join(thread, NULL);
    return fwrite(times + warm_up, sizeof *times, count, stdout) == count ? 0 : 1;
}
