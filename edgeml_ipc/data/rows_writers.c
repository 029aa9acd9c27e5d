/* The registry of writers. The kernel says who lives: a lock on a byte of the segment's file for each place, which it drops
 * when the process ends, and the process id with its start time, since a forked child may keep the lock. */
#define _GNU_SOURCE
#include "rows.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Bytes that are locked, past the end of any segment: one per place for its owner, one for whoever recovers it. */
static const int64_t lock_from = (int64_t)1 << 60;

static unsigned fork_count;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

static void count_fork(void) { fork_count++; }
static void install_fork_handler(void) { pthread_atfork(NULL, NULL, count_fork); }

unsigned erb_fork_count(void) {
    pthread_once(&fork_once, install_fork_handler);
    return fork_count;
}

static int set_lock(const erb_table *table, int64_t byte, short type) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = lock_from + byte, .l_len = 1};
    return fcntl(table->fd, F_OFD_SETLK, &lock);
}

bool erb_lock(const erb_table *table, int64_t byte, bool wait) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = lock_from + byte, .l_len = 1};
    int status;
    do status = fcntl(table->fd, wait ? F_OFD_SETLKW : F_OFD_SETLK, &lock);
    while (status && errno == EINTR);
    return status == 0;
}

void erb_unlock(const erb_table *table, int64_t byte) { set_lock(table, byte, F_UNLCK); }

/* Whether somebody else holds the lock. */
static bool is_locked(const erb_table *table, int64_t byte) {
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = lock_from + byte, .l_len = 1};
    return fcntl(table->fd, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

static int64_t owner_byte(uint32_t place) { return place; }
static int64_t recovery_byte(uint32_t place) { return ERB_MAX_WRITERS + (int64_t)place; }

/* When a process started, in ticks since boot; 0: there is none, or it has ended and waits to be reaped; -1: that cannot be told. */
static int64_t start_ticks(int64_t pid) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%lld/stat", (long long)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return errno == ENOENT ? 0 : -1; /* a process that has no descriptor left must not take others for dead */
    ssize_t n = read(fd, text, sizeof text - 1);
    bool is_gone = n < 0 && errno == ESRCH;
    close(fd);
    if (n <= 0) return is_gone ? 0 : -1;
    text[n] = 0;
    const char *rest = strrchr(text, ')'); /* the name may hold anything */
    char state;
    long threads;
    unsigned long long ticks;
    const char *format = " %c %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %*s %ld %*s %llu";
    if (!rest || sscanf(rest + 1, format, &state, &threads, &ticks) != 3) return -1;
    bool ended = state == 'X' || (state == 'Z' && threads <= 1); /* Z with threads: only the main one has ended */
    return ended ? 0 : (int64_t)ticks;
}

uint64_t erb_pid_space(void) {
    struct stat status;
    return stat("/proc/self/ns/pid", &status) == 0 ? (uint64_t)status.st_ino : 0;
}

/* Whether the writer's process is gone, by its id; false: it is not, or that cannot be told from here. */
static bool has_ended(const erb_table *table, const erb_slot *slot) {
    uint64_t ticks = atomic_load_explicit(&slot->start_ticks, memory_order_relaxed);
    uint64_t space = atomic_load_explicit(&slot->pid_space, memory_order_relaxed);
    if (!ticks || !space || space != table->pid_space) return false; /* the lock is all there is to go by */
    int64_t found = start_ticks(atomic_load_explicit(&slot->pid, memory_order_relaxed));
    return found >= 0 && (uint64_t)found != ticks;
}

/* The mutex is held. */
static bool is_dead(const erb_table *table, uint32_t place) {
    const erb_slot *slot = &table->slots[place];
    if (table->writers[place].number) return false;
    if (atomic_load_explicit(&slot->writer, memory_order_acquire) == 0) return false;
    return !is_locked(table, owner_byte(place)) || has_ended(table, slot);
}

bool erb_is_dead(erb_table *table, uint32_t place) {
    /* After a fork our locks are our parent's too, and say nothing here; and the mutex may have been held at that moment. */
    if (table->forks != erb_fork_count()) return has_ended(table, &table->slots[place]);
    pthread_mutex_lock(&table->mutex);
    bool dead = is_dead(table, place);
    pthread_mutex_unlock(&table->mutex);
    return dead;
}

bool erb_recover_place(erb_table *table, uint32_t place) {
    if (!is_dead(table, place) || set_lock(table, recovery_byte(place), F_WRLCK)) return false;
    bool dead = is_dead(table, place); /* somebody may have been quicker */
    if (dead) {
        erb_release_chunks(table, place);
        atomic_store_explicit(&table->slots[place].writer, 0, memory_order_release);
    }
    set_lock(table, recovery_byte(place), F_UNLCK);
    return dead;
}

int erb_recover(erb_table *table, uint32_t *recovered) {
    *recovered = 0;
    if (table->forks != erb_fork_count()) return ERB_FORKED;
    pthread_mutex_lock(&table->mutex);
    for (uint32_t place = 0; place < table->writer_slots; place++) *recovered += erb_recover_place(table, place);
    pthread_mutex_unlock(&table->mutex);
    return ERB_OK;
}

/* The mutex is held, and so is the lock of the place. */
static void settle(erb_table *table, uint32_t place, int64_t *number) {
    erb_slot *slot = &table->slots[place];
    int64_t ticks = start_ticks(getpid());
    *number = atomic_fetch_add_explicit(&table->header->next_writer, 1, memory_order_relaxed);
    atomic_store_explicit(&slot->pid, getpid(), memory_order_relaxed);
    atomic_store_explicit(&slot->start_ticks, ticks > 0 ? (uint64_t)ticks : 0, memory_order_relaxed);
    atomic_store_explicit(&slot->pid_space, table->pid_space, memory_order_relaxed);
    atomic_store_explicit(&slot->open, INT64_MAX, memory_order_relaxed);
    atomic_store_explicit(&slot->granted, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->chunk, 0, memory_order_relaxed);
    atomic_store_explicit(&slot->writer, *number, memory_order_release);
    table->writers[place] = (erb_writer){.number = *number, .chunk = -1, .behind = -1, .last_row = -1};
}

int erb_register(erb_table *table, uint32_t *place, int64_t *number) {
    int status = ERB_NO_SLOT;
    if (table->forks != erb_fork_count()) return ERB_FORKED;
    pthread_mutex_lock(&table->mutex);
    for (uint32_t i = 0; status == ERB_NO_SLOT && i < table->writer_slots; i++) {
        if (table->writers[i].number) continue;
        if (set_lock(table, owner_byte(i), F_WRLCK)) {
            if (errno != EAGAIN && errno != EACCES) status = ERB_SYSTEM;
            continue;
        }
        if (atomic_load_explicit(&table->slots[i].writer, memory_order_acquire)) erb_recover_place(table, i);
        if (atomic_load_explicit(&table->slots[i].writer, memory_order_acquire)) { /* somebody else is at it */
            set_lock(table, owner_byte(i), F_UNLCK);
            continue;
        }
        settle(table, i, number);
        *place = i;
        status = ERB_OK;
    }
    pthread_mutex_unlock(&table->mutex);
    return status;
}

void erb_forget(erb_table *table, uint32_t place) {
    if (table->forks != erb_fork_count()) return;
    pthread_mutex_lock(&table->mutex);
    if (table->writers[place].number) {
        erb_release_chunks(table, place);
        atomic_store_explicit(&table->slots[place].writer, 0, memory_order_release);
        table->writers[place].number = 0;
        set_lock(table, owner_byte(place), F_UNLCK);
    }
    pthread_mutex_unlock(&table->mutex);
}
