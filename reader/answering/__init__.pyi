from .answered import AnsweredQuestion as AnsweredQuestion
from .answers_file import AnswersFile as AnswersFile
from .answers_file import read_answers as read_answers
from .engine import Answering as Answering
from .run import AnswerReport as AnswerReport
from .run import AnswerSettings as AnswerSettings
from .run import answer_file as answer_file
