/* Wait for any of many links: spin while an answer is near, then park and sleep in epoll.
 *
 * To park is to store an odd epoch on the board that every peer maps, and to scan once more. A sender that finds an odd epoch
 * after its commit rings the doorbell, once per epoch. The store and the scan here, the commit and the load there, are
 * seq_cst: one of the two sees the other (models/park_wake.pml).
 */
#define _GNU_SOURCE
#include "core.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum { SPIN_LIMIT_NS = 200000, SPIN_FIRST_NS = 100000, SPIN_LEAST_NS = 1000, YIELD_AFTER_NS = 3000 };
/* What is added to the eventfd's counter: its value tells whether any of the signals was a wake. */
static const uint64_t NUDGE = 1, WAKE = (uint64_t)1 << 32;
enum { FREE_LOSSES = 3 }; /* spins lost in a row that are forgiven at the next short sleep */

/* A waiter that always finds something still has to hear of deaths, new connections and wakes. */
enum { WAITS_BETWEEN_SLEEPS = 64 };

int64_t eipc_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* On a machine with one CPU nobody can answer while we spin. A pinned process may spin: its peer runs elsewhere, or says that
 * it does not (shares_cpu). */
static bool may_spin(void) { return sysconf(_SC_NPROCESSORS_ONLN) > 1; }

/* In epoll a link is known by its address; its pidfd by the address with the lowest bit set; the wake_fd by the waiter's
 * address; any other fd by NULL. */
static int watch(eipc_waiter *waiter, int fd, void *tag) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = tag};
    return epoll_ctl(waiter->epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0 ? EIPC_OK : EIPC_SYSTEM;
}

int eipc_waiter_create(eipc_waiter **out) {
    eipc_waiter *waiter = calloc(1, sizeof *waiter);
    if (!waiter) return EIPC_NO_MEMORY;
    atomic_init(&waiter->refs, 1);
    waiter->forks = eipc_fork_count();
    waiter->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    waiter->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    int status = waiter->epoll_fd < 0 || waiter->wake_fd < 0 ? EIPC_SYSTEM : eipc_map_create(sizeof(eipc_board), &waiter->board_map);
    if (status == EIPC_OK) {
        waiter->board = (eipc_board *)(void *)waiter->board_map->addr;
        waiter->board->magic = EIPC_MAGIC_BOARD;
        waiter->board->version = EIPC_VERSION;
        waiter->spin_budget_ns = may_spin() ? SPIN_FIRST_NS : 0;
        status = watch(waiter, waiter->wake_fd, waiter);
    }
    if (status) eipc_waiter_unref(waiter);
    else *out = waiter;
    return status;
}

void eipc_waiter_ref(eipc_waiter *waiter) { atomic_fetch_add_explicit(&waiter->refs, 1, memory_order_relaxed); }

void eipc_waiter_unref(eipc_waiter *waiter) {
    if (atomic_fetch_sub_explicit(&waiter->refs, 1, memory_order_acq_rel) != 1) return;
    if (waiter->epoll_fd >= 0) close(waiter->epoll_fd);
    if (waiter->wake_fd >= 0) close(waiter->wake_fd);
    eipc_map_unref(waiter->board_map);
    free(waiter->links);
    free(waiter);
}

int eipc_waiter_watch(eipc_waiter *waiter, int fd) { return watch(waiter, fd, NULL); }

void eipc_waiter_unwatch(eipc_waiter *waiter, int fd) {
    /* The epoll instance is shared with a forked child, which must not change it. */
    if (waiter->forks == eipc_fork_count()) epoll_ctl(waiter->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
}

int eipc_waiter_add(eipc_waiter *waiter, eipc_link *link) {
    if (waiter->forks != eipc_fork_count()) return EIPC_FORKED;
    if (waiter->link_count == waiter->link_room) {
        size_t room = waiter->link_room ? waiter->link_room * 2 : 4;
        eipc_link **grown = realloc(waiter->links, room * sizeof *grown);
        if (!grown) return EIPC_NO_MEMORY;
        waiter->links = grown;
        waiter->link_room = room;
    }
    int status = watch(waiter, link->sock, link);
    if (status == EIPC_OK && link->pidfd >= 0) status = watch(waiter, link->pidfd, (void *)((uintptr_t)link | 1));
    if (status) {
        eipc_waiter_unwatch(waiter, link->sock); /* epoll must not keep an address that may be freed */
        return status;
    }
    waiter->links[waiter->link_count++] = link;
    return EIPC_OK;
}

void eipc_waiter_remove(eipc_waiter *waiter, eipc_link *link) {
    for (size_t i = 0; i < waiter->link_count; i++) {
        if (waiter->links[i] != link) continue;
        waiter->links[i] = waiter->links[--waiter->link_count];
        eipc_waiter_unwatch(waiter, link->sock);
        if (link->pidfd >= 0) eipc_waiter_unwatch(waiter, link->pidfd);
        return;
    }
}

static void signal_wake_fd(eipc_waiter *waiter, uint64_t value) {
    /* A full counter is as good as one more. */
    if (write(waiter->wake_fd, &value, sizeof value) < 0) return;
}

void eipc_waiter_wake(eipc_waiter *waiter) { signal_wake_fd(waiter, WAKE); }

void eipc_waiter_nudge(eipc_waiter *waiter) {
    if (atomic_load_explicit(&waiter->board->park_epoch, memory_order_seq_cst) & 1) signal_wake_fd(waiter, NUDGE);
}

eipc_link *eipc_waiter_scan(eipc_waiter *waiter) {
    size_t n = waiter->link_count;
    for (size_t i = 0; i < n; i++) {
        size_t at = waiter->next + i;
        if (at >= n) at %= n;
        if (!eipc_readable(waiter->links[at])) continue;
        waiter->next = at + 1; /* the one that was served comes last next time */
        return waiter->links[at];
    }
    return NULL;
}

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

/* A peer on this very CPU can't run while we spin. */
static bool shares_cpu(const eipc_waiter *waiter) {
    uint32_t cpu = (uint32_t)sched_getcpu();
    atomic_store_explicit(&waiter->board->cpu, cpu, memory_order_relaxed);
    for (size_t i = 0; i < waiter->link_count; i++)
        if (atomic_load_explicit(&waiter->links[i]->peer_board->cpu, memory_order_relaxed) == cpu) return true;
    return false;
}

/* The budget follows what waiting has lately cost: twice the last wait that spinning won, half after each it lost. */
static eipc_link *spin(eipc_waiter *waiter, int64_t deadline_ns) {
    int64_t start = eipc_now_ns(), now = start, until = start + waiter->spin_budget_ns;
    if (deadline_ns > 0 && deadline_ns < until) until = deadline_ns;
    int64_t yield_from = shares_cpu(waiter) ? start : start + YIELD_AFTER_NS;
    while (now < until) {
        if (now >= yield_from) sched_yield();
        for (int i = 0; i < 32; i++) {
            eipc_link *ready = eipc_waiter_scan(waiter);
            if (ready) {
                int64_t budget = 2 * (eipc_now_ns() - start) + SPIN_FIRST_NS / 2;
                waiter->spin_budget_ns = budget < SPIN_LIMIT_NS ? budget : SPIN_LIMIT_NS;
                waiter->spins_lost_in_row = 0;
                waiter->count.spins_won++;
                return ready;
            }
            relax();
        }
        now = eipc_now_ns();
    }
    waiter->count.spins_lost++;
    waiter->spins_lost_in_row++;
    waiter->spin_budget_ns = waiter->spin_budget_ns / 2 < SPIN_LEAST_NS ? 0 : waiter->spin_budget_ns / 2;
    return NULL;
}

/* A sleep that was shorter than we might have spun asks for spinning again: at once, or later if that keeps being lost. */
static void learn_from_sleep(eipc_waiter *waiter, int64_t slept_ns) {
    if (slept_ns >= SPIN_LIMIT_NS || !may_spin()) return;
    uint32_t lost = waiter->spins_lost_in_row < FREE_LOSSES ? 0 : waiter->spins_lost_in_row - FREE_LOSSES;
    if (++waiter->short_sleeps < 1u << (lost < 6 ? lost : 6)) return;
    waiter->short_sleeps = 0;
    waiter->spin_budget_ns = 2 * slept_ns < SPIN_LIMIT_NS ? 2 * slept_ns : SPIN_LIMIT_NS;
}

static void set_epoch(eipc_waiter *waiter) {
    uint32_t epoch = atomic_load_explicit(&waiter->board->park_epoch, memory_order_relaxed);
    atomic_store_explicit(&waiter->board->park_epoch, epoch + 1, memory_order_seq_cst);
}

static int milliseconds_until(int64_t deadline_ns) {
    if (deadline_ns < 0) return -1;
    int64_t left = deadline_ns - eipc_now_ns();
    return left <= 0 ? 0 : left > (int64_t)1000 * 3600 * 1000000 ? 3600 * 1000 : (int)((left + 999999) / 1000000);
}

static void hear_wake_fd(eipc_waiter *waiter) {
    uint64_t signals;
    if (read(waiter->wake_fd, &signals, sizeof signals) == sizeof signals && signals >= WAKE) waiter->attention = true;
}

/* Sleep in epoll and read what rang. */
static int sleep_once(eipc_waiter *waiter, int64_t deadline_ns) {
    struct epoll_event events[32];
    waiter->waits_since_sleep = 0;
    int n = epoll_wait(waiter->epoll_fd, events, 32, milliseconds_until(deadline_ns));
    if (n < 0) return errno == EINTR ? EIPC_INTERRUPTED : EIPC_SYSTEM;
    for (int i = 0; i < n; i++) {
        uintptr_t tag = (uintptr_t)events[i].data.ptr;
        eipc_link *link = (eipc_link *)(tag & ~(uintptr_t)1);
        if (!link) waiter->attention = true;
        else if (tag == (uintptr_t)waiter) hear_wake_fd(waiter);
        else if (tag & 1) atomic_store(&link->gone, true);
        else eipc_link_drain(link);
    }
    return milliseconds_until(deadline_ns) == 0 ? EIPC_TIMEOUT : EIPC_OK; /* whatever rang: the caller looks once more */
}

/* Park, look once more, sleep. */
static int park(eipc_waiter *waiter, int64_t deadline_ns, eipc_link **ready) {
    int64_t start = eipc_now_ns();
    int status = EIPC_OK;
    set_epoch(waiter); /* odd: from here on senders ring */
    *ready = eipc_waiter_scan(waiter);
    if (!*ready) {
        waiter->count.sleeps++;
        status = sleep_once(waiter, deadline_ns);
        *ready = eipc_waiter_scan(waiter);
        if (*ready) learn_from_sleep(waiter, eipc_now_ns() - start);
    }
    set_epoch(waiter); /* even */
    return status;
}

int eipc_waiter_wait(eipc_waiter *waiter, int64_t deadline_ns, eipc_link **ready) {
    if (waiter->forks != eipc_fork_count()) return EIPC_FORKED;
    int status = EIPC_OK;
    *ready = NULL;
    if (++waiter->waits_since_sleep >= WAITS_BETWEEN_SLEEPS) status = sleep_once(waiter, 0);
    if (status == EIPC_TIMEOUT) status = EIPC_OK;
    if (!waiter->attention && status == EIPC_OK) {
        *ready = eipc_waiter_scan(waiter);
        if (!*ready && deadline_ns != 0 && waiter->spin_budget_ns > 0) *ready = spin(waiter, deadline_ns);
    }
    while (!*ready && !waiter->attention && status == EIPC_OK) status = park(waiter, deadline_ns, ready);
    if (*ready) return EIPC_OK;
    if (!waiter->attention) return status;
    waiter->attention = false;
    return EIPC_OK;
}

eipc_link *eipc_waiter_try(eipc_waiter *waiter) {
    if (waiter->attention || waiter->waits_since_sleep + 1 >= WAITS_BETWEEN_SLEEPS || waiter->forks != eipc_fork_count()) return NULL;
    eipc_link *ready = eipc_waiter_scan(waiter);
    waiter->waits_since_sleep += ready != NULL;
    return ready;
}
