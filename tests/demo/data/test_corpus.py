from plaudit_demo.data.corpus import make_corpus, make_prompts


def test_all_prompts_differ():
    prompts = make_prompts()
    assert len(set(prompts)) == len(prompts) == 12 * 8 * 7


def test_the_same_seed_gives_the_same_corpus_and_another_seed_another():
    prompts = make_prompts()
    corpus = make_corpus(prompts, 50, seed=1)
    assert corpus == make_corpus(prompts, 50, seed=1)
    assert corpus != make_corpus(prompts, 50, seed=2)


def test_prompt_and_completion_join_to_one_text():
    for example in make_corpus(make_prompts(), 50, seed=1):
        assert example.prompt.endswith(":")
        assert example.completion.startswith(" ")
        assert example.completion.endswith(".")
