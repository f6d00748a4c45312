/* Faults in system calls, preloaded (LD_PRELOAD) into a process under test.
 *
 * Counts the calls that touch files below one folder; at the Nth call of chosen classes it kills the process, fails with an
 * error, tears a write (half of its bytes, then SIGKILL) or waits. Optionally records every change of those files in a journal,
 * contents included, from which tests/support/faults/power.py builds the state that a power cut would leave.
 *
 * Calls go to the kernel by syscall(2), so that nothing here depends on the order of libraries. Linux, 64 bits.
 * A folder or file is recognised by its path; descriptors by /proc/self/fd, so that dup() and renames need no bookkeeping.
 */
#define _GNU_SOURCE
#undef _FORTIFY_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

/* The order is that of shim.CLASSES. */
enum { CREATE, WRITE, FSYNC, RENAME, UNLINK, TRUNCATE, MKDIR, OPEN, READ, MMAP, N_CLASSES };
enum { NOTHING, KILL, FAIL, TEAR, WAIT };
enum { GO_ON, FAILED, TORN };

static int armed, action, error_number, sticky, wait_ms, journal_fd = -1;
static unsigned mask;
static long nth, hits, counts[N_CLASSES];
static char prefix[PATH_MAX];
static size_t prefix_length;
static pthread_mutex_t journal_lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

/* Writable mappings: their bytes are recorded whole where they are flushed, and before a file of theirs gets another name. */
static struct mapping { char *address; size_t length; uint64_t inode; int fd; char path[PATH_MAX]; } mappings[64];
static int n_mappings;

void fault_arm(const char *folder, unsigned classes, long at, int what, int error, int stays, int ms, const char *journal) {
    memset(counts, 0, sizeof counts);
    hits = 0, n_mappings = 0;
    mask = classes, nth = at, action = what, error_number = error, sticky = stays, wait_ms = ms;
    snprintf(prefix, sizeof prefix, "%s", folder);
    prefix_length = strlen(prefix);
    journal_fd = journal && *journal ? syscall(SYS_openat, AT_FDCWD, journal, O_CREAT | O_WRONLY | O_TRUNC | O_CLOEXEC, 0600) : -1;
    __sync_synchronize();
    armed = 1;
}

void fault_disarm(void) {
    armed = 0;
    if (journal_fd >= 0) syscall(SYS_close, journal_fd);
    journal_fd = -1;
}

long fault_count(int class) { return counts[class]; }

/* 1 where the Nth call has been reached. */
int fault_happened(void) { return nth > 0 && hits >= nth; }

static int is_below(const char *path) {
    return !strncmp(path, prefix, prefix_length) && (path[prefix_length] == '/' || !path[prefix_length]);
}

/* The path of an open descriptor; whether it is below the folder. */
static int fd_path(int fd, char *path) {
    char link[40];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = syscall(SYS_readlinkat, AT_FDCWD, link, path, PATH_MAX - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return is_below(path);
}

/* The absolute path that (folder, name) means; whether it is below the folder under test. */
static int at_path(int folder, const char *name, char *path) {
    char base[PATH_MAX] = "";
    if (!name) return 0;
    if (*name == '/') snprintf(path, PATH_MAX, "%s", name);
    else {
        if (folder == AT_FDCWD) { if (!getcwd(base, sizeof base)) return 0; }
        else fd_path(folder, base);
        if (strlen(base) + strlen(name) + 2 > PATH_MAX) return 0;
        memcpy(path, base, strlen(base) + 1);
        strcat(path, "/");
        strcat(path, name);
    }
    return is_below(path);
}

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

/* Count a call, and do what was asked for at it. FAILED: errno is set, the call must not be made. */
static int gate(int class) {
    __sync_add_and_fetch(&counts[class], 1);
    if (!(mask >> class & 1)) return GO_ON;
    long n = __sync_add_and_fetch(&hits, 1);
    if (!nth || (n != nth && !(sticky && n > nth))) return GO_ON;
    switch (action) {
        case KILL: die(); /* fall through */
        case FAIL: errno = error_number; return FAILED;
        case TEAR: if (class == WRITE) return TORN; die(); /* fall through */
        case WAIT: usleep(1000 * wait_ms); /* fall through */
        default: return GO_ON;
    }
}

/* Journal: a header, two paths, the data. power.py reads it. */
struct header { char kind; char pad[7]; uint64_t inode; int64_t offset, length; uint32_t path, other, data, zero; };

static void journal(char kind, uint64_t inode, int64_t offset, int64_t length, const char *path, const char *other, const void *data, size_t n) {
    if (journal_fd < 0) return;
    struct header head = {kind, {0}, inode, offset, length, strlen(path), strlen(other), n, 0};
    struct iovec parts[] = {{&head, sizeof head}, {(void *)path, head.path}, {(void *)other, head.other}, {(void *)data, n}};
    if (syscall(SYS_writev, journal_fd, parts, 4) != (ssize_t)(sizeof head + head.path + head.other + n)) die();
}

static uint64_t inode_of(int fd) {
    struct stat status;
    return fstat(fd, &status) ? 0 : status.st_ino;
}

static void lock(void) { if (journal_fd >= 0) pthread_mutex_lock(&journal_lock); }
static void unlock(void) { if (journal_fd >= 0) pthread_mutex_unlock(&journal_lock); }

static int do_open(int folder, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    if (!armed || !at_path(folder, name, path)) return syscall(SYS_openat, folder, name, flags, mode);
    int writes = (flags & O_ACCMODE) != O_RDONLY || flags & (O_CREAT | O_TRUNC);
    if (gate(writes ? CREATE : OPEN) == FAILED) return -1;
    lock();
    int existed = writes && !syscall(SYS_faccessat, AT_FDCWD, path, F_OK);
    int fd = syscall(SYS_openat, folder, name, flags, mode), error = errno;
    if (fd >= 0 && !writes) journal('o', inode_of(fd), 0, 0, path, "", "", 0);
    if (fd >= 0 && writes && journal_fd >= 0) {
        if (!existed) journal('c', inode_of(fd), 0, 0, path, "", "", 0);
        else if (flags & O_TRUNC) journal('t', inode_of(fd), 0, 0, path, "", "", 0);
    }
    unlock();
    errno = error;
    return fd;
}

#define OPEN_BODY(folder) \
    mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, int); va_end(rest); } \
    return do_open(folder, name, flags, mode);
int open(const char *name, int flags, ...) { OPEN_BODY(AT_FDCWD) }
int open64(const char *name, int flags, ...) { OPEN_BODY(AT_FDCWD) }
int openat(int folder, const char *name, int flags, ...) { OPEN_BODY(folder) }
int openat64(int folder, const char *name, int flags, ...) { OPEN_BODY(folder) }
int __open_2(const char *name, int flags) { return do_open(AT_FDCWD, name, flags, 0); }
int __open64_2(const char *name, int flags) { return do_open(AT_FDCWD, name, flags, 0); }
int __openat_2(int folder, const char *name, int flags) { return do_open(folder, name, flags, 0); }
int __openat64_2(int folder, const char *name, int flags) { return do_open(folder, name, flags, 0); }
int creat(const char *name, mode_t mode) { return do_open(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *name, mode_t mode) { return do_open(AT_FDCWD, name, O_CREAT | O_WRONLY | O_TRUNC, mode); }

static ssize_t do_write(int fd, const struct iovec *parts, int n, off_t at, int positioned) {
    char path[PATH_MAX];
    if (!armed || !fd_path(fd, path))
        return positioned ? syscall(SYS_pwritev, fd, parts, n, at, 0) : syscall(SYS_writev, fd, parts, n);
    int verdict = gate(WRITE);
    if (verdict == FAILED) return -1;
    if (verdict == TORN) {
        size_t half = parts[0].iov_len / 2;
        if (positioned) syscall(SYS_pwrite64, fd, parts[0].iov_base, half, at);
        else syscall(SYS_write, fd, parts[0].iov_base, half);
        die();
    }
    lock();
    off_t offset = positioned ? at : syscall(SYS_lseek, fd, 0, SEEK_CUR);
    if (!positioned && syscall(SYS_fcntl, fd, F_GETFL) & O_APPEND) {
        struct stat status;
        fstat(fd, &status);
        offset = status.st_size;
    }
    ssize_t written = positioned ? syscall(SYS_pwritev, fd, parts, n, at, 0) : syscall(SYS_writev, fd, parts, n);
    int error = errno;
    ssize_t left = written;
    for (int i = 0; i < n && left > 0 && journal_fd >= 0; i++) {
        size_t some = parts[i].iov_len < (size_t)left ? parts[i].iov_len : (size_t)left;
        journal('w', inode_of(fd), offset, some, path, "", parts[i].iov_base, some);
        offset += some, left -= some;
    }
    unlock();
    errno = error;
    return written;
}

ssize_t write(int fd, const void *data, size_t n) {
    struct iovec part = {(void *)data, n};
    if (!armed) return syscall(SYS_write, fd, data, n);
    return do_write(fd, &part, 1, 0, 0);
}
static ssize_t do_pwrite(int fd, const void *data, size_t n, off_t at) {
    struct iovec part = {(void *)data, n};
    return do_write(fd, &part, 1, at, 1);
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t at) { return do_pwrite(fd, data, n, at); }
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t at) { return do_pwrite(fd, data, n, at); }
ssize_t writev(int fd, const struct iovec *parts, int n) { return do_write(fd, parts, n, 0, 0); }
ssize_t pwritev(int fd, const struct iovec *parts, int n, off_t at) { return do_write(fd, parts, n, at, 1); }
ssize_t pwritev64(int fd, const struct iovec *parts, int n, off64_t at) { return do_write(fd, parts, n, at, 1); }

/* Kernel-side copies: refused as a kernel without them would, so that callers fall back to read and write. */
ssize_t sendfile64(int out, int in, off64_t *at, size_t n) {
    char path[PATH_MAX];
    if (armed && fd_path(out, path)) { errno = EINVAL; return -1; }
    return syscall(SYS_sendfile, out, in, at, n);
}
ssize_t sendfile(int out, int in, off_t *at, size_t n) { return sendfile64(out, in, at, n); }
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t n, unsigned flags) {
    char path[PATH_MAX];
    if (armed && fd_path(out, path)) { errno = ENOSYS; return -1; }
    return syscall(SYS_copy_file_range, in, from, out, to, n, flags);
}

/* Buffered writing inside libc does not come through write(): numpy's tofile is such a caller. */
size_t fwrite(const void *data, size_t size, size_t n, FILE *file) {
    static size_t (*real)(const void *, size_t, size_t, FILE *);
    char path[PATH_MAX];
    if (!real) real = dlsym(RTLD_NEXT, "fwrite");
    if (!armed || fileno(file) < 3 || !fd_path(fileno(file), path)) return real(data, size, n, file);
    fflush(file);
    ssize_t written = write(fileno(file), data, size * n);
    return written < 0 ? 0 : written / size;
}

static void record_mapping(struct mapping *mapping) {
    struct stat status;
    if (fstat(mapping->fd, &status) || !status.st_size) return;
    char *data = malloc(status.st_size);
    ssize_t n = data ? syscall(SYS_pread64, mapping->fd, data, status.st_size, 0) : -1;
    if (n > 0) journal('w', mapping->inode, 0, n, mapping->path, "", data, n);
    free(data);
}

static void record_mappings(uint64_t inode) {
    for (int i = 0; i < n_mappings; i++)
        if (mappings[i].inode == inode) record_mapping(&mappings[i]);
}

static void add_mapping(char *address, size_t length, int fd, const char *path) {
    if (journal_fd < 0 || n_mappings == 64) return;
    struct mapping *mapping = &mappings[n_mappings++];
    mapping->address = address, mapping->length = length, mapping->inode = inode_of(fd);
    mapping->fd = syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 0);
    snprintf(mapping->path, PATH_MAX, "%s", path);
}

int msync(void *address, size_t length, int flags) {
    for (int i = 0; i < n_mappings && armed; i++) {
        struct mapping *mapping = &mappings[i];
        if ((char *)address < mapping->address || (char *)address >= mapping->address + mapping->length) continue;
        if (gate(FSYNC) == FAILED) return -1;
        lock();
        record_mapping(mapping);
        journal('s', mapping->inode, 0, 0, mapping->path, "", "", 0);
        unlock();
        return 0;
    }
    return syscall(SYS_msync, address, length, flags);
}

static int do_sync(int fd, int number) {
    char path[PATH_MAX];
    if (!armed || !fd_path(fd, path)) return syscall(number, fd);
    if (gate(FSYNC) == FAILED) return -1;
    lock();
    int done = 0, error = 0; /* The kernel's own sync is not needed: no power goes off here. */
    struct stat status;
    if (fstat(fd, &status)) done = -1, error = errno;
    else record_mappings(status.st_ino), journal(S_ISDIR(status.st_mode) ? 'd' : 's', status.st_ino, 0, 0, path, "", "", 0);
    unlock();
    errno = error;
    return done;
}
int fsync(int fd) { return do_sync(fd, SYS_fsync); }
int fdatasync(int fd) { return do_sync(fd, SYS_fdatasync); }
int syncfs(int fd) { (void)fd; journal('S', 0, 0, 0, "", "", "", 0); return 0; }
void sync(void) { journal('S', 0, 0, 0, "", "", "", 0); }

static int do_rename(int from_folder, const char *from, int to_folder, const char *to, unsigned flags, int is_link) {
    char path[PATH_MAX], other[PATH_MAX];
    int below = armed && at_path(from_folder, from, path), other_below = armed && at_path(to_folder, to, other);
    if ((below || other_below) && gate(RENAME) == FAILED) return -1;
    lock();
    struct stat status;
    if (below && journal_fd >= 0 && !fstatat(AT_FDCWD, path, &status, AT_SYMLINK_NOFOLLOW)) record_mappings(status.st_ino);
    int done = is_link ? syscall(SYS_linkat, from_folder, from, to_folder, to, flags)
                       : syscall(SYS_renameat2, from_folder, from, to_folder, to, flags), error = errno;
    if (!done && (below || other_below)) journal(is_link ? 'l' : 'r', 0, 0, flags, path, other, "", 0);
    unlock();
    errno = error;
    return done;
}
int rename(const char *from, const char *to) { return do_rename(AT_FDCWD, from, AT_FDCWD, to, 0, 0); }
int renameat(int a, const char *from, int b, const char *to) { return do_rename(a, from, b, to, 0, 0); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) { return do_rename(a, from, b, to, flags, 0); }
int link(const char *from, const char *to) { return do_rename(AT_FDCWD, from, AT_FDCWD, to, 0, 1); }
int linkat(int a, const char *from, int b, const char *to, int flags) { return do_rename(a, from, b, to, flags, 1); }

static int do_unlink(int folder, const char *name, int flags) {
    char path[PATH_MAX];
    int below = armed && at_path(folder, name, path);
    if (below && gate(UNLINK) == FAILED) return -1;
    lock();
    int done = syscall(SYS_unlinkat, folder, name, flags), error = errno;
    if (!done && below) journal(flags & AT_REMOVEDIR ? 'x' : 'u', 0, 0, 0, path, "", "", 0);
    unlock();
    errno = error;
    return done;
}
int unlink(const char *name) { return do_unlink(AT_FDCWD, name, 0); }
int unlinkat(int folder, const char *name, int flags) { return do_unlink(folder, name, flags); }
int rmdir(const char *name) { return do_unlink(AT_FDCWD, name, AT_REMOVEDIR); }
int remove(const char *name) {
    int done = do_unlink(AT_FDCWD, name, 0);
    return done && errno == EISDIR ? do_unlink(AT_FDCWD, name, AT_REMOVEDIR) : done;
}

static int do_mkdir(int folder, const char *name, mode_t mode) {
    char path[PATH_MAX];
    int below = armed && at_path(folder, name, path);
    if (below && gate(MKDIR) == FAILED) return -1;
    lock();
    int done = syscall(SYS_mkdirat, folder, name, mode), error = errno;
    if (!done && below) journal('m', 0, 0, 0, path, "", "", 0);
    unlock();
    errno = error;
    return done;
}
int mkdir(const char *name, mode_t mode) { return do_mkdir(AT_FDCWD, name, mode); }
int mkdirat(int folder, const char *name, mode_t mode) { return do_mkdir(folder, name, mode); }

static int do_truncate(int fd, off_t length) {
    char path[PATH_MAX];
    int below = armed && fd_path(fd, path);
    if (below && gate(TRUNCATE) == FAILED) return -1;
    lock();
    int done = syscall(SYS_ftruncate, fd, length), error = errno;
    if (!done && below) journal('t', inode_of(fd), 0, length, path, "", "", 0);
    unlock();
    errno = error;
    return done;
}
int ftruncate(int fd, off_t length) { return do_truncate(fd, length); }
int ftruncate64(int fd, off64_t length) { return do_truncate(fd, length); }
static int truncate_path(const char *name, off_t length) {
    int fd = syscall(SYS_openat, AT_FDCWD, name, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    int done = do_truncate(fd, length), error = errno;
    syscall(SYS_close, fd);
    errno = error;
    return done;
}
int truncate(const char *name, off_t length) { return truncate_path(name, length); }
int truncate64(const char *name, off64_t length) { return truncate_path(name, length); }
int posix_fallocate(int fd, off_t at, off_t length) {
    struct stat status;
    if (fstat(fd, &status)) return errno;
    return status.st_size < at + length && do_truncate(fd, at + length) ? errno : 0;
}

static int read_gate(int fd) {
    char path[PATH_MAX];
    return armed && fd_path(fd, path) && gate(READ) == FAILED;
}
ssize_t read(int fd, void *data, size_t n) { return read_gate(fd) ? -1 : syscall(SYS_read, fd, data, n); }
ssize_t __read_chk(int fd, void *data, size_t n, size_t room) { (void)room; return read(fd, data, n); }
ssize_t pread(int fd, void *data, size_t n, off_t at) { return read_gate(fd) ? -1 : syscall(SYS_pread64, fd, data, n, at); }
ssize_t pread64(int fd, void *data, size_t n, off64_t at) { return read_gate(fd) ? -1 : syscall(SYS_pread64, fd, data, n, at); }
ssize_t readv(int fd, const struct iovec *parts, int n) { return read_gate(fd) ? -1 : syscall(SYS_readv, fd, parts, n); }
ssize_t preadv(int fd, const struct iovec *parts, int n, off_t at) { return read_gate(fd) ? -1 : syscall(SYS_preadv, fd, parts, n, at, 0); }

static void *do_mmap(void *address, size_t n, int protection, int flags, int fd, off_t at) {
    char path[PATH_MAX];
    if (armed && fd >= 0 && !(flags & MAP_ANONYMOUS) && fd_path(fd, path)) {
        if (gate(MMAP) == FAILED) return MAP_FAILED;
        void *made = (void *)syscall(SYS_mmap, address, n, protection, flags, fd, at);
        int error = errno;
        if (made != MAP_FAILED && flags & MAP_SHARED && protection & PROT_WRITE) add_mapping(made, n, fd, path);
        errno = error;
        return made;
    }
    return (void *)syscall(SYS_mmap, address, n, protection, flags, fd, at);
}
void *mmap(void *address, size_t n, int protection, int flags, int fd, off_t at) { return do_mmap(address, n, protection, flags, fd, at); }
void *mmap64(void *address, size_t n, int protection, int flags, int fd, off64_t at) { return do_mmap(address, n, protection, flags, fd, at); }
