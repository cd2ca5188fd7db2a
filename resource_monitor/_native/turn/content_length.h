/* What a Content-Length announces (RFC 9110, section 8.6). */

#ifndef RM_CONTENT_LENGTH_H
#define RM_CONTENT_LENGTH_H

#include <stddef.h>
#include <stdint.h>

/* Bytes; -1: more than `most`, or no length. */
static inline int64_t rm_content_length(const char *text, size_t length, int64_t most)
{
    int64_t number = length ? 0 : -1;
    for (size_t at = 0; number >= 0 && at < length; at++) {
        number = text[at] >= '0' && text[at] <= '9' ? 10 * number + (text[at] - '0') : -1;
        if (number > most)
            number = -1;
    }
    return number;
}

#endif
