/* Parses the kernel's small text files: one number, "key value" lines, the table of resource limits. No allocation, no
 * state; every function returns 0 or a count, and an errno for a file that does not hold what it should. */

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "probe.h"
#include "text.h"

static ssize_t read_from(int fd, char *text, size_t size, size_t at)
{
    ssize_t got;
    do
        got = pread(fd, text, size, (off_t)at);
    while (got < 0 && errno == EINTR);
    return got < 0 ? -errno : got;
}

/* The file from its start into `text`, NUL-terminated; its length, or -errno. A negative fd is an errno of its own. One
 * read brings it all: the kernel shows each of these files as one record, which it does not split (fs/seq_file.c). */
ssize_t rm_read_text(int fd, char *text, size_t size)
{
    ssize_t length = fd < 0 ? fd : read_from(fd, text, size - 1, 0);
    if (length >= 0)
        text[length] = 0;
    return length;
}

/* The decimal number at *at, which is moved past it; 0, or EBADMSG when there is none or it does not fit. */
int rm_take_number(const char **at, const char *end, u64 *value)
{
    const char *p = *at;
    u64 n = 0;
    if (p == end || *p < '0' || *p > '9')
        return EBADMSG;
    for (; p < end && *p >= '0' && *p <= '9'; p++) {
        u64 digit = (u64)(*p - '0');
        if (n > (NO_LIMIT - digit) / 10)
            return EBADMSG;
        n = n * 10 + digit;
    }
    *at = p;
    *value = n;
    return 0;
}

/* A file that holds one number, "max" or "-1" (both: no limit, value ~0). 0 or EBADMSG. */
int rm_parse_integer(const char *text, size_t length, u64 *value)
{
    const char *end = text + length;
    while (end > text && (end[-1] == '\n' || end[-1] == ' '))
        end--;
    length = (size_t)(end - text);
    if ((length == 3 && !memcmp(text, "max", 3)) || (length == 2 && !memcmp(text, "-1", 2))) {
        *value = NO_LIMIT;
        return 0;
    }
    if (rm_take_number(&text, end, value) || text != end)
        return EBADMSG;
    return 0;
}

/* Lines of "key value [unit]": values[i] gets the value of keys[i] in the first such line, and stays as it is where there
 * is none. A unit of kB multiplies by 1024. The number of keys found, of which no line is looked at after the last, or
 * -EBADMSG when a wanted key has no number behind it. */
int rm_parse_keys(const char *text, size_t length, const char *const *keys, int count, u64 *values)
{
    const char *end = text + length;
    unsigned seen = 0;
    int found = 0;
    while (text < end && found < count) {
        const char *line_end = memchr(text, '\n', (size_t)(end - text));
        if (!line_end)
            line_end = end;
        const char *space = memchr(text, ' ', (size_t)(line_end - text));
        if (space) {
            size_t key_length = (size_t)(space - text);
            for (int i = 0; i < count; i++) {
                if (keys[i][0] != text[0] || seen >> i & 1 || strlen(keys[i]) != key_length ||
                    memcmp(keys[i], text, key_length))
                    continue;
                const char *at = space;
                u64 value;
                while (at < line_end && *at == ' ')
                    at++;
                if (rm_take_number(&at, line_end, &value))
                    return -EBADMSG;
                if (line_end - at >= 3 && !memcmp(at, " kB", 3)) {
                    if (value > NO_LIMIT / 1024)
                        return -EBADMSG;
                    value *= 1024;
                }
                values[i] = value;
                seen |= 1u << i;
                found++;
                break;
            }
        }
        text = line_end + 1;
    }
    return found;
}

/* The soft value of the line that starts with `name` in a /proc/PID/limits (fs/proc/base.c, proc_pid_limits): a number,
 * or "unlimited" (value ~0). 0, or EBADMSG when there is no such line. */
int rm_parse_rlimit(const char *text, size_t length, const char *name, u64 *value)
{
    const char *end = text + length;
    size_t name_length = strlen(name);
    while (text < end) {
        const char *line_end = memchr(text, '\n', (size_t)(end - text));
        if (!line_end)
            line_end = end;
        const char *at = text + name_length;
        if (at < line_end && *at == ' ' && !memcmp(text, name, name_length)) {
            while (at < line_end && *at == ' ')
                at++;
            if (line_end - at >= 9 && !memcmp(at, "unlimited", 9)) {
                *value = NO_LIMIT;
                return 0;
            }
            return rm_take_number(&at, line_end, value);
        }
        text = line_end + 1;
    }
    return EBADMSG;
}

/* 1 when the file still holds exactly `expected`, 0 when not, -errno. Compares piecewise: no length is too long. A piece
 * of less than what was asked for is the last. */
int rm_same_content(int fd, const char *expected, size_t length)
{
    char text[4096];
    size_t at = 0;
    ssize_t got;
    do {
        if ((got = read_from(fd, text, sizeof text, at)) < 0)
            return (int)got;
        if ((size_t)got > length - at || memcmp(text, expected + at, (size_t)got))
            return 0;
        at += (size_t)got;
    } while (got == sizeof text);
    return at == length;
}
