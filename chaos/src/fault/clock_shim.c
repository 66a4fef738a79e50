/* Other clocks for one datacenter: loaded with LD_PRELOAD into its processes, it takes the place of the kernel's vDSO.
 *
 * Programs read clocks through the vDSO, some of them (rustix) without the C library in between, so replacing libc's symbols would
 * not reach them. The constructor overwrites the vDSO's entry points, which are private to the process, with jumps to here. The
 * clocks come from `$CHAOS_CLOCKS/<inode of the network namespace>`, a file that the harness rewrites while the process runs: one
 * per datacenter, and no process needs to be told. Without that file all clocks are true.
 *
 * Deliberately absent: the speed of timers. A wait of the kernel's lasts as long as ever; only what clocks say differs. */
#define _GNU_SOURCE
#include <elf.h>
#include <fcntl.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* Written by the harness; `turn` is odd while it writes. */
struct clocks {
    uint64_t turn;
    int64_t wall_ns;      /* added to CLOCK_REALTIME */
    int64_t ppm;          /* clocks run this much faster, in millionths */
    int64_t anchor_ns;    /* true CLOCK_BOOTTIME since when they do */
    int64_t boot_ns;      /* added to CLOCK_MONOTONIC and CLOCK_BOOTTIME */
};

static volatile struct clocks *clocks;
static const int64_t SECOND = 1000000000;

static int64_t now(int id) {
    struct timespec t;
    if (syscall(SYS_clock_gettime, id, &t) != 0) return -1;
    return t.tv_sec * SECOND + t.tv_nsec;
}

static int64_t shifted(int id, int64_t real) {
    if (clocks == NULL) return real;
    struct clocks c;
    do {
        c.turn = clocks->turn;
        __sync_synchronize();
        c.wall_ns = clocks->wall_ns; c.ppm = clocks->ppm; c.anchor_ns = clocks->anchor_ns; c.boot_ns = clocks->boot_ns;
        __sync_synchronize();
    } while ((c.turn & 1) || c.turn != clocks->turn);
    int64_t drift = 0;
    if (c.ppm != 0) {
        int64_t since = now(CLOCK_BOOTTIME) - c.anchor_ns;
        drift = since / 1000000 * c.ppm + since % 1000000 * c.ppm / 1000000;
    }
    switch (id) {
    case CLOCK_REALTIME: case CLOCK_REALTIME_COARSE: return real + drift + c.wall_ns;
    case CLOCK_MONOTONIC: case CLOCK_MONOTONIC_RAW: case CLOCK_MONOTONIC_COARSE: case CLOCK_BOOTTIME: return real + drift + c.boot_ns;
    default: return real;
    }
}

static int chaos_clock_gettime(clockid_t id, struct timespec *t) {
    struct timespec real;
    long failed = syscall(SYS_clock_gettime, id, &real);
    if (failed != 0) return -22; /* the vDSO's own way to say EINVAL */
    int64_t ns = shifted(id, real.tv_sec * SECOND + real.tv_nsec);
    t->tv_sec = ns / SECOND;
    t->tv_nsec = ns % SECOND;
    return 0;
}

static int chaos_gettimeofday(struct timeval *tv, void *zone) {
    (void)zone;
    struct timespec t;
    chaos_clock_gettime(CLOCK_REALTIME, &t);
    if (tv != NULL) { tv->tv_sec = t.tv_sec; tv->tv_usec = t.tv_nsec / 1000; }
    return 0;
}

static time_t chaos_time(time_t *out) {
    struct timespec t;
    chaos_clock_gettime(CLOCK_REALTIME, &t);
    if (out != NULL) *out = t.tv_sec;
    return t.tv_sec;
}

/* An absolute jump. */
static void redirect(uint8_t *from, void *to) {
    long page = sysconf(_SC_PAGESIZE);
    uint8_t *start = (uint8_t *)((uintptr_t)from & ~(uintptr_t)(page - 1));
    if (mprotect(start, 2 * page, PROT_READ | PROT_WRITE | PROT_EXEC) != 0
        && mprotect(start, page, PROT_READ | PROT_WRITE | PROT_EXEC) != 0) return;
#if defined(__x86_64__)
    uint8_t code[12] = {0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xe0}; /* mov rax, to; jmp rax */
    memcpy(code + 2, &to, 8);
#elif defined(__aarch64__)
    uint8_t code[16] = {0x50, 0, 0, 0x58, 0, 0x02, 0x1f, 0xd6}; /* ldr x16, 8; br x16; .quad to */
    memcpy(code + 8, &to, 8);
#else
#error "only x86_64 and aarch64 are known"
#endif
    memcpy(from, code, sizeof code);
    __builtin___clear_cache((char *)from, (char *)from + sizeof code);
    mprotect(start, page, PROT_READ | PROT_EXEC);
}

static void redirect_vdso(void) {
    uintptr_t base = getauxval(AT_SYSINFO_EHDR);
    if (base == 0) return;
    ElfW(Ehdr) *header = (ElfW(Ehdr) *)base;
    ElfW(Phdr) *segment = (ElfW(Phdr) *)(base + header->e_phoff);
    ElfW(Dyn) *dynamic = NULL;
    uintptr_t load = 0;
    for (int i = 0; i < header->e_phnum; i++) {
        if (segment[i].p_type == PT_LOAD) load = base + segment[i].p_offset - segment[i].p_vaddr;
        if (segment[i].p_type == PT_DYNAMIC) dynamic = (ElfW(Dyn) *)(base + segment[i].p_offset);
    }
    ElfW(Sym) *symbols = NULL;
    const char *names = NULL;
    for (; dynamic != NULL && dynamic->d_tag != DT_NULL; dynamic++) {
        if (dynamic->d_tag == DT_SYMTAB) symbols = (ElfW(Sym) *)(load + dynamic->d_un.d_ptr);
        if (dynamic->d_tag == DT_STRTAB) names = (const char *)(load + dynamic->d_un.d_ptr);
    }
    if (symbols == NULL || names == NULL) return;
    /* The string table follows the symbols in every vDSO there is, and bounds them. */
    for (ElfW(Sym) *s = symbols; (const char *)s < names; s++) {
        const char *name = names + s->st_name;
        if (s->st_value == 0) continue;
        if (strcmp(name, "__vdso_clock_gettime") == 0 || strcmp(name, "__kernel_clock_gettime") == 0)
            redirect((uint8_t *)(load + s->st_value), chaos_clock_gettime);
        if (strcmp(name, "__vdso_gettimeofday") == 0 || strcmp(name, "__kernel_gettimeofday") == 0)
            redirect((uint8_t *)(load + s->st_value), chaos_gettimeofday);
        if (strcmp(name, "__vdso_time") == 0) redirect((uint8_t *)(load + s->st_value), chaos_time);
    }
}

__attribute__((constructor)) static void begin(void) {
    const char *dir = getenv("CHAOS_CLOCKS");
    struct stat net;
    char path[4096];
    if (dir == NULL || stat("/proc/self/ns/net", &net) != 0) return;
    snprintf(path, sizeof path, "%s/%llu", dir, (unsigned long long)net.st_ino);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    void *mapped = mmap(NULL, sizeof(struct clocks), PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (mapped == MAP_FAILED) return;
    clocks = mapped;
    redirect_vdso();
}
