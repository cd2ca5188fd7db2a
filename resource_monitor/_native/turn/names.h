/* What names.c offers: no Python. */

#ifndef RM_NAMES_H
#define RM_NAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The most bytes that the name of a class can have. */
size_t rm_name_most(size_t method_length, size_t path_length);
/* Write "GET /users/{}/orders" to `out`; its length. */
size_t rm_name(const char *method, size_t method_length, const char *path, size_t path_length, char *out);
uint64_t rm_name_hash(const char *name, size_t length);

#endif
