"""Haystack components over a store that can be searched: one finds documents, one answers from their memory.

Install haystack-ai: ``pip install -c constraints.txt haystack-ai``.

python examples/haystack_components.py STORE CHECKPOINT "Where does the Nile end?"
"""

import sys
from typing import Any

from haystack import Document, Pipeline, component
from haystack.dataclasses import GeneratedAnswer

from pisco_index import Index
from pisco_index.errors import PromptError


@component
class PiscoRetriever:
    """Finds the documents of a store for a question, by full-text search.

    Args:
        index: a store with a search index.
        top_k: largest number of documents to return.
    """

    def __init__(self, index: Index, top_k: int = 5):
        self._index = index
        self._top_k = top_k

    @component.output_types(documents=list[Document])
    def run(self, query: str, top_k: int | None = None) -> dict[str, Any]:
        """Return the best documents, best first, each with its text, title and score."""
        found = self._index.search(query, top_k or self._top_k)
        ids = [hit.doc_id for hit in found]
        reader = self._index.reader
        rows = zip(found, reader.titles(ids), reader.texts(ids), strict=True)
        return {
            "documents": [
                Document(id=hit.doc_id, content=text, meta={"title": title}, score=hit.score)
                for hit, title, text in rows
            ]
        }


@component
class PiscoAnswerer:
    """Answers a question from the stored memory of documents, without reading their text.

    Args:
        index: the store, opened with its checkpoint.
    """

    def __init__(self, index: Index):
        self._index = index

    @component.output_types(answers=list[GeneratedAnswer])
    def run(self, query: str, documents: list[Document]) -> dict[str, Any]:
        """Return one answer, with the documents that it was read from; none if nothing was found."""
        if not documents:
            return {"answers": []}
        (answer,) = self._index.answer([query], doc_ids=[[document.id for document in documents]])
        if answer.answer is None:
            raise PromptError(str(answer.error))
        meta = {"memory_tokens": answer.memory_tokens, "prompt_tokens": answer.prompt_tokens}
        return {"answers": [GeneratedAnswer(answer.answer, query, documents, meta)]}


def pipeline(index: Index, top_k: int = 5) -> Pipeline:
    """Return a pipeline that finds documents for the retriever's ``query`` and answers the answerer's from them."""
    steps = Pipeline()
    steps.add_component("retriever", PiscoRetriever(index, top_k))
    steps.add_component("answerer", PiscoAnswerer(index))
    steps.connect("retriever.documents", "answerer.documents")
    return steps


def main(store: str, checkpoint: str, question: str) -> None:
    """Print the answer to a question and the documents that it was read from."""
    with Index(store, checkpoint) as index:
        result = pipeline(index).run({"retriever": {"query": question}, "answerer": {"query": question}})
    for answer in result["answerer"]["answers"]:
        print(answer.data)
        for document in answer.documents:
            print(f"{document.score:.2f}  {document.id}  {document.meta['title']}")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
