/* Stands between a process and the C library (LD_PRELOAD): kills it before one of its operations
 * on the files of a folder, those of TensorFlow's C++ code among them, and makes its clock jump. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static char folder[PATH_MAX];
static atomic_long left = -1;
static atomic_long jumps = 0;
static atomic_long offset = 0;

/* Kills before the operation of this number on what lies in the folder `name`. */
void interpose_kill(const char *name, long number) {
  strncpy(folder, name, sizeof folder - 1);
  left = number;
}

/* Lets the clock jump by up to a month, from the next reading on. */
void interpose_jumps(long seed) { jumps = seed; }

static void before(int at, const char *path) {
  char whole[2 * PATH_MAX] = "";
  if (left < 0) return;
  if (path == NULL || path[0] != '/') {
    char link[64];
    snprintf(link, sizeof link, at == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", at);
    ssize_t length = readlink(link, whole, PATH_MAX);
    if (length < 0) return;
    whole[length] = '\0';
    strcat(whole, "/");
  }
  if (path != NULL) strncat(whole, path, PATH_MAX - 1);
  if (strncmp(whole, folder, strlen(folder)) != 0) return;
  if (atomic_fetch_sub(&left, 1) == 0) kill(getpid(), SIGKILL);
}

#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

#define OPENS(name)                                                       \
  int name(const char *path, int flags, ...) {                            \
    va_list rest;                                                         \
    va_start(rest, flags);                                                \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                                         \
    if (flags & (O_WRONLY | O_RDWR)) before(AT_FDCWD, path);              \
    return REAL(name)(path, flags, mode);                                 \
  }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name)                                                    \
  int name(int at, const char *path, int flags, ...) {                    \
    va_list rest;                                                         \
    va_start(rest, flags);                                                \
    mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
    va_end(rest);                                                         \
    if (flags & (O_WRONLY | O_RDWR)) before(at, path);                    \
    return REAL(name)(at, path, flags, mode);                             \
  }
OPENS_AT(openat)
OPENS_AT(openat64)

#define OPENS_STREAM(name)                                                \
  FILE *name(const char *path, const char *mode) {                        \
    if (strpbrk(mode, "wa+")) before(AT_FDCWD, path);                     \
    return REAL(name)(path, mode);                                        \
  }
OPENS_STREAM(fopen)
OPENS_STREAM(fopen64)

#define ON_PATH(name, declared, passed)                                   \
  int name declared {                                                     \
    before(AT_FDCWD, path);                                               \
    return REAL(name) passed;                                             \
  }
ON_PATH(mkdir, (const char *path, mode_t mode), (path, mode))
ON_PATH(rename, (const char *path, const char *to), (path, to))
ON_PATH(unlink, (const char *path), (path))
ON_PATH(remove, (const char *path), (path))
ON_PATH(rmdir, (const char *path), (path))
ON_PATH(truncate, (const char *path, off_t length), (path, length))

int unlinkat(int at, const char *path, int flags) {
  before(at, path);
  return REAL(unlinkat)(at, path, flags);
}

int ftruncate(int file, off_t length) {
  before(file, NULL);
  return REAL(ftruncate)(file, length);
}

int fsync(int file) {
  before(file, NULL);
  return REAL(fsync)(file);
}

static void jump(void) {
  if (jumps && rand() % 4 == 0) offset = rand() % 5184000 - 2592000;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  int status = REAL(clock_gettime)(clock, now);
  if (clock == CLOCK_REALTIME && jumps) {
    jump();
    now->tv_sec += offset;
  }
  return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  int status = REAL(gettimeofday)(now, zone);
  jump();
  now->tv_sec += offset;
  return status;
}

time_t time(time_t *at) {
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  if (at) *at = now.tv_sec;
  return now.tv_sec;
}
