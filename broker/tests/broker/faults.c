/* A layer between a program and its system that fails as told; it is preloaded (ld.so(8), LD_PRELOAD).
 *
 * HOIST_FAULTS names a folder. A file in it with the name of a call makes that call fail on the store's files, for as
 * long as it is there; it holds the error's number. `write-zeros` are the writes of zeros alone, `open` is of the denylist. A fault that has struck adds a byte to the file `CALL.struck`. A file `clock` holds the name of a thread that can no longer read
 * the time, which no program expects: a thread of Rust panics.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* What a fault's file holds; empty when there is none. */
static void fault(const char *call, char *text, size_t size) {
    const char *folder = getenv("HOIST_FAULTS");
    char path[4096];
    text[0] = 0;
    if (folder == NULL) return;
    snprintf(path, sizeof path, "%s/%s", folder, call);
    int saved = errno;
    int file = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    if (file >= 0) {
        ssize_t len = syscall(SYS_read, file, text, size - 1);
        text[len > 0 ? len : 0] = 0;
        syscall(SYS_close, file);
    }
    errno = saved;
}

/* The error that a call shall end with, or 0. */
static int error_of(const char *call) {
    char text[16];
    fault(call, text, sizeof text);
    return atoi(text);
}

static void struck(const char *call) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s.struck", getenv("HOIST_FAULTS"), call);
    int file = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (file < 0) return;
    syscall(SYS_write, file, "x", 1);
    syscall(SYS_close, file);
}

static int is_of_store(int file) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    int saved = errno;
    ssize_t len = readlink(link, path, sizeof path - 1);
    errno = saved;
    if (len <= 0) return 0;
    path[len] = 0;
    return strstr(path, "/retained.") != NULL;
}

/* What was written last, which a disk that fails a sync may have thrown away. */
static int last_file = -1;
static off_t last_at;
static size_t last_len;

static int is_zero(const char *bytes, size_t len) {
    return len > 0 && bytes[0] == 0 && memcmp(bytes, bytes + 1, len - 1) == 0;
}

ssize_t write(int file, const void *bytes, size_t len) {
    if (is_of_store(file)) {
        int error = error_of("write");
        if (error == 0 && is_zero(bytes, len)) {
            error = error_of("write-zeros");
            if (error != 0) struck("write-zeros");
        }
        if (error != 0) {
            /* Half of it is there. */
            syscall(SYS_write, file, bytes, len / 2);
            errno = error;
            return -1;
        }
        last_file = file;
        last_at = lseek(file, 0, SEEK_CUR);
        last_len = len;
    }
    return syscall(SYS_write, file, bytes, len);
}

/* Linux takes pages that it could not write for clean: a later sync says nothing of them. */
static int sync_fails(int file, const char *call) {
    int error = is_of_store(file) ? error_of(call) : 0;
    if (error == 0) return 0;
    static const char zeros[65536];
    if (file == last_file && last_len <= sizeof zeros) pwrite(file, zeros, last_len, last_at);
    errno = error;
    return 1;
}

int fdatasync(int file) {
    return sync_fails(file, "fdatasync") ? -1 : (int)syscall(SYS_fdatasync, file);
}

int fsync(int file) {
    return sync_fails(file, "fsync") ? -1 : (int)syscall(SYS_fsync, file);
}

int ftruncate64(int file, off64_t len) {
    int error = is_of_store(file) ? error_of("ftruncate") : 0;
    if (error != 0) {
        errno = error;
        return -1;
    }
    return (int)syscall(SYS_ftruncate, file, len);
}

int rename(const char *from, const char *to) {
    int error = strstr(to, "/retained.") != NULL ? error_of("rename") : 0;
    if (error != 0) {
        errno = error;
        return -1;
    }
    return (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0);
}

int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, mode_t) : 0;
    va_end(more);
    size_t len = strlen(path);
    int error = len >= 4 && strcmp(path + len - 4, "deny") == 0 ? error_of("open") : 0;
    if (error != 0) {
        struck("open");
        errno = error;
        return -1;
    }
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags | O_LARGEFILE, mode);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (real == NULL) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    char thread[16] = "", wanted[16];
    fault("clock", wanted, sizeof wanted);
    if (wanted[0] != 0 && prctl(PR_GET_NAME, thread) == 0 && strcmp(thread, wanted) == 0) {
        errno = EINVAL;
        return -1;
    }
    return real(clock, now);
}
