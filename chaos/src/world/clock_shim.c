/* Gives a process clocks of its own: a wall clock that jumps, a monotonic clock that drifts.
 *
 * Loaded by LD_PRELOAD. Programs read clocks through the kernel's vDSO, with libc or without, so its entry points are
 * overwritten in this process's own copy; libc's functions are replaced as well, in case the copy is sealed. Deadlines that are
 * handed to the kernel as absolute times (futex, clock_nanosleep) are translated back. Relative sleeps keep the kernel's pace.
 *
 * CHAOS_CLOCK names the file with the offsets, which the harness changes while this runs: see clock.rs.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define NS 1000000000LL

struct control {
    uint64_t sequence; /* odd while the harness writes */
    int64_t wall_ns, boot_ns, drift_ppm, base_ns;
};

static const volatile struct control *control;

static long kernel(long n, long a, long b, long c, long d, long e, long f) {
#if defined(__x86_64__)
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return x0;
#else
#error "the clock shim knows x86_64 and aarch64"
#endif
}

static int64_t nanos(const struct timespec *t) { return t->tv_sec * NS + t->tv_nsec; }

static struct timespec spec(int64_t ns) {
    int64_t rest = ns % NS;
    return (struct timespec){.tv_sec = ns / NS - (rest < 0), .tv_nsec = rest + (rest < 0 ? NS : 0)};
}

static int is_wall(clockid_t id) {
    return id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE || id == CLOCK_REALTIME_ALARM || id == CLOCK_TAI;
}

static int is_monotonic(clockid_t id) {
    return id == CLOCK_MONOTONIC || id == CLOCK_MONOTONIC_RAW || id == CLOCK_MONOTONIC_COARSE || id == CLOCK_BOOTTIME ||
           id == CLOCK_BOOTTIME_ALARM;
}

/* How far this clock is ahead of the kernel's, now. */
static int64_t ahead(clockid_t id) {
    if (!control || (!is_wall(id) && !is_monotonic(id))) return 0;
    struct control c;
    do {
        c.sequence = __atomic_load_n(&control->sequence, __ATOMIC_ACQUIRE);
        c.wall_ns = control->wall_ns;
        c.boot_ns = control->boot_ns;
        c.drift_ppm = control->drift_ppm;
        c.base_ns = control->base_ns;
        __atomic_thread_fence(__ATOMIC_ACQUIRE);
    } while ((c.sequence & 1) || c.sequence != __atomic_load_n(&control->sequence, __ATOMIC_RELAXED));
    int64_t drift = 0;
    if (c.drift_ppm) {
        struct timespec boot;
        kernel(SYS_clock_gettime, CLOCK_BOOTTIME, (long)&boot, 0, 0, 0, 0);
        drift = (int64_t)((__int128)(nanos(&boot) - c.base_ns) * c.drift_ppm / 1000000);
    }
    return drift + (is_wall(id) ? c.wall_ns : c.boot_ns);
}

/* As the vDSO's: zero, or an error number below zero. */
static int gettime(clockid_t id, struct timespec *t) {
    long result = kernel(SYS_clock_gettime, id, (long)t, 0, 0, 0, 0);
    int64_t add = result == 0 ? ahead(id) : 0;
    if (add) *t = spec(nanos(t) + add);
    return (int)result;
}

static int timeofday(struct timeval *t, void *zone) {
    struct timespec now;
    gettime(CLOCK_REALTIME, &now);
    if (t) *t = (struct timeval){.tv_sec = now.tv_sec, .tv_usec = now.tv_nsec / 1000};
    if (zone) memset(zone, 0, sizeof(struct timezone));
    return 0;
}

static time_t seconds(time_t *t) {
    struct timespec now;
    gettime(CLOCK_REALTIME, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}

static long answer(long result) {
    if (result >= 0 || result < -4095) return result;
    errno = (int)-result;
    return -1;
}

int clock_gettime(clockid_t id, struct timespec *t) { return (int)answer(gettime(id, t)); }
int gettimeofday(struct timeval *restrict t, void *restrict zone) { return timeofday(t, zone); }
time_t time(time_t *t) { return seconds(t); }

int clock_nanosleep(clockid_t id, int flags, const struct timespec *until, struct timespec *rest) {
    struct timespec real = *until;
    if (flags & TIMER_ABSTIME) real = spec(nanos(until) - ahead(id));
    return (int)-kernel(SYS_clock_nanosleep, id, flags, (long)&real, (long)rest, 0, 0);
}

/* Runtimes wait on futexes through this function, with absolute deadlines. */
long syscall(long n, ...) {
    va_list list;
    va_start(list, n);
    long a[6];
    for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
    va_end(list);
    struct timespec real;
    if (n == SYS_futex && (a[1] & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET && a[3]) {
        clockid_t id = a[1] & FUTEX_CLOCK_REALTIME ? CLOCK_REALTIME : CLOCK_MONOTONIC;
        int64_t until = nanos((struct timespec *)a[3]) - ahead(id);
        real = spec(until < 0 ? 0 : until);
        a[3] = (long)&real;
    }
    return answer(kernel(n, a[0], a[1], a[2], a[3], a[4], a[5]));
}

/* Overwrites the code at `at` with a jump to `to`. */
static void redirect(unsigned char *at, void *to) {
#if defined(__x86_64__)
    unsigned char jump[] = {0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0}; /* movabs rax, to; jmp rax */
    memcpy(jump + 2, &to, sizeof to);
#else
    unsigned char jump[] = {0x50, 0, 0, 0x58, 0, 2, 0x1f, 0xd6, 0, 0, 0, 0, 0, 0, 0, 0}; /* ldr x16, to; br x16 */
    memcpy(jump + 8, &to, sizeof to);
#endif
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)at & -page;
    uintptr_t bytes = (((uintptr_t)at + sizeof jump + page - 1) & -page) - begin;
    if (mprotect((void *)begin, bytes, PROT_READ | PROT_WRITE | PROT_EXEC) == 0) {
        memcpy(at, jump, sizeof jump);
        __builtin___clear_cache((char *)at, (char *)at + sizeof jump);
        return;
    }
    int memory = open("/proc/self/mem", O_WRONLY | O_CLOEXEC);
    if (memory < 0) return;
    if (pwrite(memory, jump, sizeof jump, (off_t)(uintptr_t)at) < 0) { /* libc's functions are replaced all the same */ }
    close(memory);
}

static void redirect_vdso(void) {
    char *base = (char *)getauxval(AT_SYSINFO_EHDR);
    if (!base) return;
    Elf64_Ehdr *header = (Elf64_Ehdr *)base;
    Elf64_Shdr *sections = (Elf64_Shdr *)(base + header->e_shoff);
    for (int s = 0; s < header->e_shnum; s++) {
        if (sections[s].sh_type != SHT_DYNSYM) continue;
        Elf64_Sym *symbols = (Elf64_Sym *)(base + sections[s].sh_offset);
        char *names = base + sections[sections[s].sh_link].sh_offset;
        for (size_t i = 0; i < sections[s].sh_size / sizeof *symbols; i++) {
            char *name = names + symbols[i].st_name;
            void *to = strstr(name, "__") != name          ? NULL
                       : strstr(name, "_clock_gettime")    ? (void *)gettime
                       : strstr(name, "_gettimeofday")     ? (void *)timeofday
                       : strcmp(name, "__vdso_time") == 0  ? (void *)seconds
                                                           : NULL;
            if (to && !strstr(name, "64")) redirect((unsigned char *)base + symbols[i].st_value, to);
        }
        return;
    }
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CHAOS_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *map = mmap(NULL, sizeof(struct control), PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (map == MAP_FAILED) return;
    control = map;
    redirect_vdso();
}
