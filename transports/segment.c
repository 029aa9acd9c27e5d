/* A memfd that one process writes and others map read-only, sealed so that its size can never change. */
#define _GNU_SOURCE
#include "core.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

/* Below this the check of free memory costs more than it can save. */
static const size_t check_memory_from_bytes = 4u << 20;

static unsigned fork_count;
static pthread_once_t fork_once = PTHREAD_ONCE_INIT;

static void count_fork(void) { fork_count++; }
static void install_fork_handler(void) { pthread_atfork(NULL, NULL, count_fork); }

unsigned eipc_fork_count(void) {
    pthread_once(&fork_once, install_fork_handler);
    return fork_count;
}

static int64_t read_number(const char *path) {
    char text[64];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0) return -1;
    text[n] = 0;
    char *end;
    long long value = strtoll(text, &end, 10);
    return end == text ? -1 : (int64_t)value; /* "max" is no number: no limit */
}

static int64_t machine_available(void) {
    char line[256];
    long long kib = -1;
    FILE *file = fopen("/proc/meminfo", "re");
    if (!file) return -1;
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "MemAvailable: %lld kB", &kib) == 1) break;
    fclose(file);
    return kib < 0 ? -1 : (int64_t)kib * 1024;
}

/* Bytes of files in memory, without those of shared memory; 0 if the kernel does not say. */
static int64_t page_cache(const char *path) {
    char line[128];
    long long bytes, sum = 0;
    FILE *file = fopen(path, "re");
    if (!file) return 0;
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "active_file %lld", &bytes) == 1 || sscanf(line, "inactive_file %lld", &bytes) == 1) sum += bytes;
    fclose(file);
    return sum;
}

/* Version 2 of cgroups: the own group is the line "0::/path". An ancestor's limit is not looked at. */
static int64_t cgroup_available(void) {
    char line[512], path[640];
    int64_t free_bytes = -1;
    FILE *file = fopen("/proc/self/cgroup", "re");
    if (!file) return -1;
    while (fgets(line, sizeof line, file)) {
        if (strncmp(line, "0::", 3) != 0) continue;
        line[strcspn(line, "\n")] = 0;
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.max", line + 3);
        int64_t limit = read_number(path);
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.current", line + 3);
        int64_t used = read_number(path);
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/memory.stat", line + 3);
        if (used >= 0) used -= page_cache(path); /* counted as used, and given back on demand */
        if (limit >= 0 && used >= 0) free_bytes = limit > used ? limit - used : 0;
        break;
    }
    fclose(file);
    return free_bytes;
}

int64_t eipc_memory_available(void) {
    int64_t machine = machine_available(), group = cgroup_available();
    if (group >= 0 && (machine < 0 || group < machine)) return group;
    return machine < 0 ? INT64_MAX : machine;
}

/* In pieces, since kernels before 6.16 undo a whole call when a signal arrives, and a periodic one would never let it end. */
static int reserve(int fd, size_t bytes) {
    static const size_t piece = 4u << 20;
    for (size_t at = 0; at < bytes;) {
        size_t n = bytes - at < piece ? bytes - at : piece;
        int error = posix_fallocate(fd, (off_t)at, (off_t)n);
        if (error && error != EINTR) return error;
        if (!error) at += n;
    }
    return 0;
}

static int new_memfd(size_t bytes) {
    int fd = memfd_create("edgeml_ipc", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) fd = memfd_create("edgeml_ipc", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0) return -1;
    /* Reserving now turns a full machine into an error here rather than SIGBUS at some later store. */
    int error = reserve(fd, bytes);
    if (error) {
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

static eipc_map *new_map(uint8_t *addr, size_t bytes, int fd) {
    eipc_map *map = calloc(1, sizeof *map);
    if (!map) return NULL;
    map->addr = addr;
    map->bytes = bytes;
    map->fd = fd;
    atomic_init(&map->refs, 1);
    return map;
}

int eipc_map_create(size_t bytes, eipc_map **out) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    bytes = (bytes + page - 1) & ~(page - 1);
    if (bytes >= check_memory_from_bytes && (int64_t)bytes > eipc_memory_available()) return EIPC_NO_MEMORY;
    int fd = new_memfd(bytes);
    if (fd < 0) return errno == ENOMEM || errno == ENOSPC ? EIPC_NO_MEMORY : EIPC_SYSTEM;
    void *addr = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (addr == MAP_FAILED) {
        close(fd);
        return EIPC_NO_MEMORY;
    }
    /* FUTURE_WRITE leaves this mapping writable and forbids every other; kernels before 5.1 do not have it. */
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL) < 0 &&
        (errno != EINVAL || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)) {
        munmap(addr, bytes);
        close(fd);
        return EIPC_SYSTEM;
    }
    eipc_map *map = new_map(addr, bytes, fd);
    if (!map) {
        munmap(addr, bytes);
        close(fd);
        return EIPC_NO_MEMORY;
    }
    *out = map;
    return EIPC_OK;
}

int eipc_map_attach(int fd, size_t least_bytes, uint32_t generation, eipc_map **out) {
    struct stat status;
    int seals = fcntl(fd, F_GET_SEALS);
    bool sound = seals >= 0 && (seals & F_SEAL_SHRINK) && fstat(fd, &status) == 0 && S_ISREG(status.st_mode) &&
                 status.st_size > 0 && (uint64_t)status.st_size >= least_bytes &&
                 /* Reserved by its writer: to look at a hole would take the memory from us. */
                 status.st_blocks >= status.st_size / 512;
    if (!sound) {
        close(fd);
        return EIPC_VIOLATION;
    }
    size_t bytes = (size_t)status.st_size;
    void *addr = mmap(NULL, bytes, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
    close(fd);
    if (addr == MAP_FAILED) return EIPC_NO_MEMORY;
    eipc_map *map = new_map(addr, bytes, -1);
    if (!map) {
        munmap(addr, bytes);
        return EIPC_NO_MEMORY;
    }
    map->generation = generation;
    *out = map;
    return EIPC_OK;
}

eipc_map *eipc_map_ref(eipc_map *map) {
    atomic_fetch_add_explicit(&map->refs, 1, memory_order_relaxed);
    return map;
}

void eipc_map_unref(eipc_map *map) {
    if (!map || atomic_fetch_sub_explicit(&map->refs, 1, memory_order_acq_rel) != 1) return;
    munmap(map->addr, map->bytes);
    if (map->fd >= 0) close(map->fd);
    free(map);
}
