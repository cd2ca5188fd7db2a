/* How many connections wait in the kernel at one listening socket, asked without an object for it. */

#include "turn.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

PyObject *rm_queued(PyObject *module, PyObject *descriptor)
{
    (void)module;
    long number = PyLong_AsLong(descriptor);
    if (number == -1 && PyErr_Occurred())
        return NULL;
    struct tcp_info info = {0};
    socklen_t size = sizeof info;
    if (number != (int)number || getsockopt((int)number, IPPROTO_TCP, TCP_INFO, &info, &size) ||
        info.tcpi_state != TCP_LISTEN)
        Py_RETURN_NONE;
    /* where the kernel leaves the length of a listening socket's accept queue (net/ipv4/tcp.c, tcp_get_info) */
    return PyLong_FromUnsignedLong(info.tcpi_unacked);
}
