/* Which class a request belongs to: method and path, with what stands for one thing among many left out. */

#include "names.h"

#include <string.h>

enum { DIGIT = 1, HEX = 2, WORD = 4 };          /* WORD: letters, digits, "_" and "-" */

static const unsigned char kinds[256] = {
    ['0'] = DIGIT | HEX | WORD, ['1'] = DIGIT | HEX | WORD, ['2'] = DIGIT | HEX | WORD, ['3'] = DIGIT | HEX | WORD,
    ['4'] = DIGIT | HEX | WORD, ['5'] = DIGIT | HEX | WORD, ['6'] = DIGIT | HEX | WORD, ['7'] = DIGIT | HEX | WORD,
    ['8'] = DIGIT | HEX | WORD, ['9'] = DIGIT | HEX | WORD,
    ['a'] = HEX | WORD, ['b'] = HEX | WORD, ['c'] = HEX | WORD, ['d'] = HEX | WORD, ['e'] = HEX | WORD,
    ['f'] = HEX | WORD, ['g' ... 'z'] = WORD,
    ['A'] = HEX | WORD, ['B'] = HEX | WORD, ['C'] = HEX | WORD, ['D'] = HEX | WORD, ['E'] = HEX | WORD,
    ['F'] = HEX | WORD, ['G' ... 'Z'] = WORD,
    ['_'] = WORD, ['-'] = WORD,
};

static size_t run_of(const unsigned char *text, size_t length, int kind)
{
    size_t count = 0;
    while (count < length && kinds[text[count]] & kind)
        count++;
    return count;
}

/* A long hexadecimal number, and more of it behind hyphens as UUIDs have. */
static bool is_hexadecimal(const unsigned char *text, size_t length)
{
    size_t at = run_of(text, length, HEX);
    if (at < 8)
        return false;
    while (at < length) {
        if (text[at] != '-')
            return false;
        size_t more = run_of(text + at + 1, length - at - 1, HEX);
        if (!more)
            return false;
        at += 1 + more;
    }
    return true;
}

/* Numbers, UUIDs and other long hexadecimal names, long ones with a digit in them, and anything too long to be a name that
 * a person gave. */
static bool is_identifier(const unsigned char *text, size_t length)
{
    enum { TOKEN = 16, NAME_MOST = 32 };
    if (length && run_of(text, length, DIGIT) == length)
        return true;
    if (length < 8)
        return false;
    if (is_hexadecimal(text, length))
        return true;
    if (length < TOKEN)
        return false;
    size_t characters = 0;
    bool word = true, digit = false, line_end = false;
    for (size_t at = 0; at < length; at++) {
        unsigned char byte = text[at];
        characters += (byte & 0xC0) != 0x80;    /* the first byte of one in UTF-8 */
        word = word && kinds[byte] & WORD;
        digit = digit || kinds[byte] & DIGIT;
        line_end = line_end || byte == '\n';
    }
    return (word && digit) || (characters > NAME_MOST && !line_end);
}

size_t rm_name_most(size_t method_length, size_t path_length) { return method_length + 1 + 2 * path_length + 2; }

size_t rm_name(const char *method, size_t method_length, const char *path, size_t path_length, char *out)
{
    char *end = out;
    memcpy(end, method, method_length);
    end += method_length;
    *end++ = ' ';
    if (method_length == 3 && !memcmp(method, "RPC", 3)) { /* its path is a name that a developer gave it */
        memcpy(end, path, path_length);
        return (size_t)(end - out) + path_length;
    }
    const char *at = path, *stop = path + path_length;
    for (;;) {
        const char *slash = memchr(at, '/', (size_t)(stop - at));
        size_t length = (size_t)((slash ? slash : stop) - at);
        if (is_identifier((const unsigned char *)at, length)) {
            *end++ = '{';
            *end++ = '}';
        } else {
            memcpy(end, at, length);
            end += length;
        }
        if (!slash)
            return (size_t)(end - out);
        *end++ = '/';
        at = slash + 1;
    }
}

uint64_t rm_name_hash(const char *name, size_t length)
{
    uint64_t hash = length, word;
    for (; length >= sizeof word; name += sizeof word, length -= sizeof word) {
        memcpy(&word, name, sizeof word);
        hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
        hash ^= hash >> 32;
    }
    word = 0;
    memcpy(&word, name, length);
    hash = (hash ^ word) * 0x9E3779B97F4A7C15u;
    return hash ^ hash >> 32;
}
