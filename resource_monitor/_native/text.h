/* What the C files share and Python does not see: whole small files on the stack, and numbers out of them. */

#ifndef RM_TEXT_H
#define RM_TEXT_H

#include <stddef.h>
#include <sys/types.h>

typedef unsigned long long u64;

#define NO_LIMIT (~0ULL)

ssize_t rm_read_text(int fd, char *text, size_t size);
int rm_take_number(const char **at, const char *end, u64 *value);

static inline u64 minus(u64 a, u64 b) { return a > b ? a - b : 0; }

static inline u64 plus(u64 a, u64 b) { return a + b < a ? ~(u64)0 : a + b; }

#endif
