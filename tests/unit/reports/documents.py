"""Parts of a document, by their identity."""

from halocast.reports.document import Picture, Table


def block(document, identity):
    return next(each for kind in (Table, Picture) for each in document.blocks(kind) if each.identity == identity)


def identities(document):
    return {each.identity for kind in (Table, Picture) for each in document.blocks(kind)}


def column(table, identifier):
    place = [each.identifier for each in table.columns].index(identifier)
    return [row[place] for row in table.rows]
