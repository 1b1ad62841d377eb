"""A multiple-choice task of lm_eval's: the questions, and what describes them, with FILE for their file."""

QUESTIONS = [
    {"question": "Which statement ends a loop?", "choices": ["break", "import", "yield from"], "label": 0},
    {
        "question": "What does len return?",
        "choices": ["a string", "an integer", "None", "a function object"],
        "label": 1,
    },
    {"question": "Which type is immutable?", "choices": ["list", "dict", "tuple"], "label": 2},
    {"question": "Which keyword defines a class?", "choices": ["def", "class"], "label": 1},
    {"question": "Which raises an exception?", "choices": ["raise", "throw", "except"], "label": 0},
]
TASK = """
task: python_questions
dataset_path: json
dataset_kwargs:
  data_files:
    test: FILE
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: label
doc_to_choice: choices
metric_list:
  - metric: acc
  - metric: acc_norm
"""
