/* Counts the entries of the directories in which the kernel lists descriptors and tasks. No allocation: the entries are
 * read into the stack with getdents64(2). */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "probe.h"
#include "text.h"

/* What getdents64(2) writes. */
struct entry {
    unsigned long long inode;
    long long offset;
    unsigned short length;
    unsigned char type;
    char name[];
};

typedef long (*weigh_t)(int directory, const char *name, unsigned int uid);

static long one(int directory, const char *name, unsigned int uid)
{
    (void)directory, (void)uid;
    return name[0] != '.';
}

/* The threads of a process that `uid` owns: a /proc/PID/task has one link for each besides "." and ".." . */
static long threads(int proc, const char *name, unsigned int uid)
{
    char path[32];
    struct stat status;
    if (name[0] < '0' || name[0] > '9')
        return 0;
    snprintf(path, sizeof path, "%.20s/task", name);
    if (fstatat(proc, path, &status, 0) || status.st_uid != uid)
        return 0; /* it ended meanwhile, or is someone else's */
    return status.st_nlink > 2 ? (long)status.st_nlink - 2 : 1;
}

static long sum(int directory, weigh_t weigh, unsigned int uid)
{
    _Alignas(struct entry) char buffer[4096];
    long total = 0;
    if (directory < 0)
        return directory;
    if (lseek(directory, 0, SEEK_SET) < 0)
        return -errno;
    for (;;) {
        long got = syscall(SYS_getdents64, directory, buffer, sizeof buffer);
        if (got < 0)
            return -errno;
        if (got == 0)
            return total;
        for (long at = 0; at < got;) {
            const struct entry *entry = (const struct entry *)(buffer + at);
            total += weigh(directory, entry->name, uid);
            at += entry->length;
        }
    }
}

/* How many entries the directory holds, or -errno. A /proc/PID/fd tells by its size since Linux 6.2 (fs/proc/fd.c,
 * proc_readfd_count); before, and in every other file system, the entries are read. */
long rm_count_entries(int directory_fd)
{
    struct statfs system;
    struct stat status;
    if (directory_fd < 0)
        return directory_fd;
    if (fstatfs(directory_fd, &system) || fstat(directory_fd, &status))
        return -errno;
    if (system.f_type == PROC_SUPER_MAGIC && status.st_size > 0)
        return (long)status.st_size;
    return sum(directory_fd, one, 0);
}

/* How many tasks (threads) belong to `uid`, as far as this /proc shows them, or -errno. */
long rm_count_tasks(int proc_fd, unsigned int uid) { return sum(proc_fd, threads, uid); }
