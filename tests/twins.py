"""A C module held against its twin in Python: the same names, the same parameters, and what is read-only in C alone."""

from __future__ import annotations

import inspect


def names(thing):
    """Those that are not the language's own."""
    return {name for name in vars(thing) if not (name.startswith("__") and name.endswith("__"))}


def parameters(function):
    """(name, kind, default) of each, self left out; None: it does not say."""
    try:
        found = inspect.signature(function).parameters.values()
    except ValueError:
        return None
    return [(each.name, each.kind, each.default) for each in found if each.name != "self"]


def check_functions(native, twin, listed):
    """Every name of the twin's ``__all__`` is there, and nothing else; each function is called alike."""
    assert names(native) == set(listed)
    for name in listed:
        if not isinstance(getattr(twin, name), type) and callable(getattr(twin, name)):
            assert parameters(getattr(native, name)) == parameters(getattr(twin, name)), name


def check_class(native, twin, made, same, *, optional=()):
    """The same of a class, ``made`` and ``same`` being one of each. What the twin has beside it is its own, and private.

    Returns:
        What may be set in the native one.
    """
    assert inspect.getdoc(native)
    assert inspect.getdoc(twin)
    assert parameters(native) == parameters(twin)
    own = names(native)
    public = {name for name in names(twin) | set(getattr(same, "__dict__", ())) if not name.startswith("_")}
    assert {name for name in own if not name.startswith("_")} == public | set(optional)
    writable = set()
    for name in own:
        ours, theirs = getattr(made, name), getattr(same, name)
        if callable(theirs) and callable(ours):
            wanted, said = parameters(theirs), parameters(ours)
            if said is None:
                # It is private, and has only to refuse what it does not take.
                assert name.startswith("_"), f"{name} does not say how it is called"
                try:
                    ours(*[None] * (len(wanted or ()) + 1))
                except TypeError:
                    continue
                raise AssertionError(f"{name} takes more than {wanted}")
            assert said == wanted, name
        else:
            try:
                setattr(made, name, ours)
            except AttributeError:
                continue
            assert not isinstance(getattr(twin, name, None), property), f"{name} is read-only in the twin"
            writable.add(name)
    # The twin has plain attributes for some of the native module's properties.
    bare = [name for name in own & set(vars(twin)) if not name.startswith("_") and not getattr(twin, name).__doc__]
    assert bare == []
    assert [name for name in own if not name.startswith("_") and not getattr(native, name).__doc__] == []
    return writable
