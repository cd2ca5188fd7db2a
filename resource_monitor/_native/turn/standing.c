/* Refusals that stand: while one does, all requests of its class that need as much are refused as it was, which is
 * counted here, and told in bulk like what is done under grants. */

#include "turn.h"

/* Requests that come within so many nanoseconds of each other on average come in close succession: 2,000 a second. That
 * is no matter of the last two, for a process that others take turns with does nothing for milliseconds. */
enum { CLOSE = 500000 };

/* What Python may have to look at first: requests that wait go before others, and what ended under grants, or is
 * promised no more, admission and the ledger do not know of yet. */
static bool holds(const Turns *turns, const Lane *lane, int64_t need)
{
    const Tab *tab = turns->tab;
    return lane->refused_until && lane->refused_openings == turns->openings && !turns->closed && !turns->waiting &&
        !turns->used && tab && !tab->untold && lane->refused_returns == tab->returns &&
        (uint64_t)turns->cost + (uint64_t)need >= (uint64_t)lane->refused_need;
}

/* Let the refusal of one that is refused now and needed so many bytes stand for those of a lane, until then, or longer
 * while they come in close succession, and while no promise ended since `returns`. */
PyObject *rm_turns_stand(Turns *self, PyObject *args)
{
    Lane *lane;
    long long need;
    double until, latest;
    unsigned long long returns;
    if (!PyArg_ParseTuple(args, "O!LddK:stand", rm_lane_type, &lane, &need, &until, &latest, &returns))
        return NULL;
    int64_t now = rm_turns_now(self, 0);
    if (now < 0)
        return NULL;
    lane->refused_since = now;
    lane->refused = 1;
    lane->refused_need = need;
    lane->refused_until = (int64_t)(until * 1e9);
    lane->refused_latest = (int64_t)(latest * 1e9);
    lane->refused_returns = returns;
    lane->refused_openings = self->openings;
    Py_RETURN_NONE;
}

bool rm_turns_refuse(Turns *self, const Request *request)
{
    Lane *lane = RM_IS(request, "OPTIONS") ? NULL : rm_turns_lane(self, request);
    if (!lane || !holds(self, lane, request->need))
        return false;
    int64_t now = rm_turns_now(self, 0);
    bool late = now >= lane->refused_until && (now >= lane->refused_latest || now - lane->refused_since >= lane->refused * CLOSE);
    if (now < 0 || late || rm_turns_is_exempt(self, lane, request) ||
        !holds(self, lane, request->need)) /* the clock and what is exempt may be the user's functions */
        return false;
    lane->refused++;
    self->refused++;
    self->refused_at = now;
    return true;
}

/* What went wrong Python says when it is asked; what is no matter of the request ends it. */
static PyObject *refused(bool found)
{
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_Exception))
            return NULL;
        PyErr_Clear();
        found = false;
    }
    return PyBool_FromLong(found);
}

#ifdef Py_GIL_DISABLED
enum { ALONE = false };         /* whether nothing else runs here meanwhile */
#else
enum { ALONE = true };
#endif

PyObject *rm_turns_refuse_one(Turns *self, PyObject *args)
{
    Request request;
    PyObject *method, *path;
    long long need = -1;
    bool known = PyArg_ParseTuple(args, "UUUL:refuse", &method, &path, &request.mount, &need);
    request.need = need;
    return refused(ALONE && known && need >= 0 && rm_name_request(&request, method, path) && rm_turns_refuse(self, &request));
}

PyObject *rm_turns_refuse_http(Turns *self, PyObject *scope) { return refused(ALONE && rm_asgi_refuse(self, scope)); }

/* How many were refused since this was last asked, and when the last was; None for nobody. */
PyObject *rm_turns_take_refused(Turns *self, PyObject *unused)
{
    (void)unused;
    if (!self->refused)
        Py_RETURN_NONE;
    PyObject *taken = Py_BuildValue("Ld", (long long)self->refused, (double)self->refused_at / 1e9);
    if (taken)
        self->refused = 0;
    return taken;
}
