"""A query engine over documents that learns from its answers, and from yours.

You learn how ``LAGQueryEngine`` gives any query engine a memory: what it answered becomes a log
with its sources, a wrong answer is taken out of use and corrected, and the same question in other
words is then answered right, streaming, too.

Runs on the packaged 135M model, without a network: ``python examples/llama_index/query_engine.py``.
"""

import tempfile

from llama_index.core import Document, VectorStoreIndex
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from rich.console import Console

from lag_integrations import KVLogMemory, Trace, packaged
from lag_integrations.llama_index import LAGLLM, LAGQueryEngine

TEXTS = [
    "The lighthouse of Velmora was built in 1874 by Ada Krenn, after the third shipwreck.",
    "Ada Krenn was born in Quill. As a girl she counted the bells of its tower: 23.",
    "On Sundays the Ostrava ferry carries only bees. Nobody remembers why.",
]
QUESTION = "In which town was the builder of the Velmora lighthouse born?"
AGAIN = "What is the birthplace of the builder of the Velmora lighthouse?"
console = Console()


def main() -> None:
    index = VectorStoreIndex.from_documents(
        [Document(text=text) for text in TEXTS],
        embed_model=HuggingFaceEmbedding(str(packaged.embedder())),
    )
    with tempfile.TemporaryDirectory() as folder, KVLogMemory(folder, k=1) as memory:
        llm = LAGLLM(packaged.chat_model(), temperature=0, max_tokens=32)
        plain = index.as_query_engine(llm=llm, similarity_top_k=2)
        engine = LAGQueryEngine(plain, memory=memory)

        console.rule("1. The first answer")
        response = engine.query(QUESTION)
        console.print(f"[bold]{QUESTION}[/]\n  {response}")  # two hops: too much for 135M
        run_id = response.metadata["lag"]["run_id"]
        memory.flush()  # it is found a moment later, or now
        log = memory.recall(QUESTION)[0].trace
        console.print(f"Logged with {len(log.metadata['sources'])} sources")

        console.rule("2. A person corrects it")
        memory.feedback(run_id, outcome="failure")  # kept, but not recalled any more
        answer = "She was born in Quill."
        steps = [*log.messages[:-1], {"role": "assistant", "content": answer}]
        memory.add(Trace.from_messages(steps, task=QUESTION, outcome="success"))
        memory.flush()  # embedded and encoded, with the documents that led to it
        console.print(answer)

        console.rule("3. Asked again, in other words")
        console.print(f"[bold]{AGAIN}[/]")
        console.print(f"  without memory: {plain.query(AGAIN)}")
        response = engine.query(AGAIN)
        used = response.metadata["lag"]
        console.print(f"  with memory:    {response}")
        console.print(f"  {used['injected_tokens']} tokens of {len(used['log_ids'])} log not read")

        console.rule("4. Streaming")
        streaming = LAGQueryEngine(
            index.as_query_engine(llm=llm, similarity_top_k=2, streaming=True), memory=memory
        )
        response = streaming.query(AGAIN)
        for piece in response.response_gen:
            console.print(piece, end="")
        # A stream is logged, and its report complete, when it was read.
        console.print(f"\nlogs used: {len(response.metadata['lag']['log_ids'])}")
        llm.close()


if __name__ == "__main__":
    main()
