/* What is told of ASGI requests between their files: the door, the request and its `send`. */

#ifndef RM_ASGI_H
#define RM_ASGI_H

#include "turn.h"

/* What belongs to one event loop. */
typedef struct {
    PyObject_HEAD
    Turns *turns;
    PyObject *respond;      /* makes what sends answers that Python has to look at */
    PyObject *awaited;      /* makes a coroutine of what an app gives that is none */
    PyObject *after;        /* what to await after an app that failed, or after an answer that Python looked at */
    PyObject *left;         /* what is called when a request left while others wait */
    PyObject *renew;        /* what grants a lane again */
    PyObject *take_in;      /* what the app receives with where a body is long, of the server's and its length */
    int64_t most_body;      /* bytes: one that announces more is Python's */
    int *thread;            /* the loop's place, which no other thread has, while it is seen how late it comes; or NULL */
    long long in_flight;
    long long entered;
} Door;

typedef struct sender Sender;

/* A request, as what runs the app when awaited, and as what adapters find in the scope. */
typedef struct {
    PyObject_HEAD
    Stay stay;
    Door *door;             /* NULL: it left */
    Sender *sender;         /* until then */
    PyObject *app;          /* before it runs, */
    PyObject *inner;        /* and then what is stepped: the app, or once it left what comes after it */
    PyObject *ask, *shed;   /* for Python */
    bool marked;            /* its steps are the app's */
    bool started;           /* the answer began */
} Turn;

/* The app's `send`, and what sends when awaited: of each only one at a time, others are made where more are needed. */
struct sender {
    PyObject_HEAD
    vectorcall call;
    Turn *turn;
    Sender *first;          /* whose `response` it is, NULL: its own */
    PyObject *scope, *receive, *send;
    PyObject *response;     /* what Python sends with */
    PyObject *message;      /* to be sent */
    PyObject *inner;        /* being sent */
    bool marked;            /* its steps are the server's */
};

/* sender.c */
bool rm_sender_init(PyObject *module);
Sender *rm_sender_new(Turn *turn, PyObject *scope, PyObject *receive, PyObject *send);

#endif
