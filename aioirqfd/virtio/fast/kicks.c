/* Kicks: where the kicks of a device's queues go, gsi n being queue n's. A queue whose ring is at rest, and has a Transfer, is served
   right here, from the eventfd to the call, without a line of Python; every other kick, and what of a kick a Transfer leaves, is
   on_kick's. */
#include "_native.h"

typedef struct {
    PyObject_HEAD
    PyObject *on_kick;   /* callable: on_kick(queue) */
    PyObject *transfers; /* list: by queue, the Transfer that may serve it just now, or None */
    PyObject *calls;     /* list: by queue, the EventFd to signal, or None: then it is not for here */
    PyObject *on_served; /* callable, or NULL: on_served(queue, what transfer_kick() has returned), before the call */
} KicksObject;

/* A new reference; NULL beyond the end. */
static PyObject *
item(PyObject *list, Py_ssize_t index)
{
#ifdef Py_GIL_DISABLED
    PyObject *found = PyList_GetItemRef(list, index);
    if (found == NULL) {
        PyErr_Clear();
    }
    return found;
#else
    return index < PyList_GET_SIZE(list) ? Py_NewRef(PyList_GET_ITEM(list, index)) : NULL;
#endif
}

/* Whether all is done. */
static bool
serve(fast_state *state, const KicksObject *self, Py_ssize_t queue)
{
    PyObject *transfer = item(self->transfers, queue);
    PyObject *call = item(self->calls, queue);
    if (transfer == NULL || call == NULL || !Py_IS_TYPE(transfer, state->transfer_type) || call == Py_None) {
        Py_XDECREF(transfer);
        Py_XDECREF(call);
        return false;
    }
    int served = transfer_kick(transfer);
    if (self->on_served != NULL) {
        PyObject *told = PyObject_CallFunction(self->on_served, "ni", queue, served);
        if (told == NULL) {
            PyErr_WriteUnraisable(self->on_served);
        }
        Py_XDECREF(told);
    }
    if ((served & TRANSFER_CALL) != 0) {
        PyObject *added = PyObject_CallMethodNoArgs(call, state->str_signal);
        if (added == NULL) {
            PyErr_WriteUnraisable(call);
        }
        Py_XDECREF(added);
    }
    Py_DECREF(call);
    Py_DECREF(transfer);
    return (served & (TRANSFER_RESTED | TRANSFER_MORE)) == TRANSFER_RESTED;
}

static PyObject *
kicks_try_inject(PyObject *op, PyObject *interrupt)
{
    KicksObject *self = (KicksObject *)op;
    fast_state *state = fast_state_of(op);
    PyObject *gsi = state != NULL && self->on_kick != NULL ? PyObject_GetAttr(interrupt, state->str_gsi) : NULL;
    if (gsi == NULL) {
        if (!PyErr_Occurred()) {
            PyErr_SetString(PyExc_RuntimeError, "collected already");
        }
        return NULL;
    }
    Py_ssize_t queue = PyNumber_AsSsize_t(gsi, PyExc_OverflowError);
    if (queue == -1 && PyErr_Occurred() != NULL) {
        Py_DECREF(gsi);
        return NULL;
    }
    PyObject *done =
        queue >= 0 && serve(state, self, queue) ? Py_NewRef(Py_None) : PyObject_CallOneArg(self->on_kick, gsi);
    Py_DECREF(gsi);
    if (done == NULL) {
        return NULL;
    }
    Py_DECREF(done);
    Py_RETURN_TRUE;
}

static PyObject *
kicks_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *keywords[] = {"on_kick", "transfers", "calls", "on_served", NULL};
    PyObject *on_kick, *transfers, *calls, *on_served = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO!O!|O:Kicks", keywords, &on_kick, &PyList_Type, &transfers,
                                     &PyList_Type, &calls, &on_served)) {
        return NULL;
    }
    KicksObject *self = (KicksObject *)type->tp_alloc(type, 0);
    if (self != NULL) {
        self->on_kick = Py_NewRef(on_kick);
        self->transfers = Py_NewRef(transfers);
        self->calls = Py_NewRef(calls);
        self->on_served = on_served != Py_None ? Py_NewRef(on_served) : NULL;
    }
    return (PyObject *)self;
}

static int
kicks_traverse(PyObject *op, visitproc visit, void *arg)
{
    KicksObject *self = (KicksObject *)op;
    Py_VISIT(Py_TYPE(op));
    Py_VISIT(self->on_kick);
    Py_VISIT(self->transfers);
    Py_VISIT(self->calls);
    Py_VISIT(self->on_served);
    return 0;
}

static int
kicks_clear(PyObject *op)
{
    KicksObject *self = (KicksObject *)op;
    Py_CLEAR(self->on_kick);
    Py_CLEAR(self->transfers);
    Py_CLEAR(self->calls);
    Py_CLEAR(self->on_served);
    return 0;
}

static void
kicks_dealloc(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    PyObject_GC_UnTrack(op);
    (void)kicks_clear(op);
    type->tp_free(op);
    Py_DECREF(type);
}

static PyMethodDef kicks_methods[] = {
    {"try_inject", kicks_try_inject, METH_O,
     PyDoc_STR("try_inject($self, interrupt, /)\n--\n\nServe the queue that its gsi names.")},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot kicks_slots[] = {
    {Py_tp_doc,
     (void *)PyDoc_STR(
         "Kicks(on_kick, transfers, calls, on_served=None)\n--\n\nWhere the kicks of a device's queues go.")},
    {Py_tp_new, (void *)kicks_new},
    {Py_tp_traverse, (void *)kicks_traverse},
    {Py_tp_clear, (void *)kicks_clear},
    {Py_tp_dealloc, (void *)kicks_dealloc},
    {Py_tp_methods, kicks_methods},
    {0, NULL},
};

PyType_Spec kicks_spec = {
    .name = "aioirqfd.virtio.fast.Kicks",
    .basicsize = sizeof(KicksObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = kicks_slots,
};
