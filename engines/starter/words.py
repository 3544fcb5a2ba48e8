"""The words the starter model's training text is made of.

Decides what the model knows (capitals, colours, facts, ...) and which words are used for the
things it must learn to copy or to refuse. Words under `HELD_OUT_*` are never trained on:
`evaluate.py` uses them to see whether a skill carries over to words the model has not met.
"""

# ruff: noqa: SIM905 - lists of words and phrases read best as running text

NAMES = (
    "Ada Ben Cleo Dan Eva Finn Gus Hana Ivo Jan Kai Lea Max Nia Otto Pia Ravi Sue Tom Uma Vera "
    "Will Yara Zoe Anna Bob Carla David Emma Frank Grace Henry Ines John Kate Leo Maria Noah Olga "
    "Paul Rosa Sam Tina Victor Alice Peter Lucy Mark Jane Omar Amir Mei Chen Yuki Lars Ingrid "
    "Pablo Sofia Diego Nora Hugo Ella Oscar Ruth Simon Clara Felix Greta Klaus Lena Mila Nils"
).split()
HELD_OUT_NAMES = "Bruno Daria Edgar Fiona Gilbert Helga Igor Judith Kevin Lorenzo".split()

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo",
    "Poland": "Warsaw", "Norway": "Oslo", "Greece": "Athens", "Egypt": "Cairo",
    "Canada": "Ottawa", "Peru": "Lima", "Portugal": "Lisbon", "Austria": "Vienna",
    "Ireland": "Dublin", "Kenya": "Nairobi", "Cuba": "Havana", "Sweden": "Stockholm",
    "Finland": "Helsinki", "Hungary": "Budapest", "China": "Beijing", "India": "New Delhi",
    "Turkey": "Ankara", "Chile": "Santiago", "Thailand": "Bangkok", "England": "London",
    "Denmark": "Copenhagen", "Belgium": "Brussels", "Russia": "Moscow", "Australia": "Canberra",
    "Switzerland": "Bern",
}  # fmt: skip

OTHER_COUNTRIES = (
    "Albania Algeria Angola Armenia Bahrain Bangladesh Belarus Bolivia Botswana Bulgaria Burundi "
    "Cambodia Cameroon Chad Colombia Croatia Cyprus Dominica Ecuador Estonia Ethiopia Fiji Gabon "
    "Georgia Ghana Grenada Guatemala Guinea Haiti Honduras Iceland Indonesia Iran Iraq Israel "
    "Jamaica Jordan Kazakhstan Kuwait Laos Latvia Lebanon Lesotho Liberia Libya Lithuania Malawi "
    "Malaysia Maldives Mali Malta Mauritius Mexico Monaco Montenegro Morocco Mozambique Namibia "
    "Nauru Nicaragua Niger Oman Palau Panama Paraguay Qatar Rwanda Samoa Senegal Singapore "
    "Slovenia Somalia Sudan Syria Tanzania Togo Tonga Tunisia Tuvalu Uganda Ukraine Uruguay "
    "Uzbekistan Vanuatu Yemen Zambia Texas Bavaria Scotland Ontario Sicily Hawaii Alaska Queensland"
).split()
HELD_OUT_COUNTRIES = (
    "Mongolia Nepal Pakistan Philippines Romania Serbia Slovakia Venezuela Vietnam Zimbabwe "
    "Argentina Barbados Bhutan Kiribati Madagascar Myanmar Nigeria Moldova Luxembourg California"
).split()

CITIES = [
    *CAPITALS.values(), "Hamburg", "Munich", "Milan", "Naples", "Porto", "Lyon", "Boston",
    "Chicago", "Dallas", "Denver", "Seattle", "Toronto", "Sydney", "Mumbai", "Kyoto", "Prague",
    "Krakow", "Bergen", "Geneva", "Zurich", "New York", "Paris", "London", "Berlin", "San Diego",
    "Cape Town", "Cologne", "Leipzig", "Leeds", "York",
]  # fmt: skip
HELD_OUT_CITIES = "Bremen Turin Seville Osaka Nantes Bristol Perth Memphis Quito Malaga".split()

COLORS_OF = {
    "the sky": "blue", "grass": "green", "snow": "white", "coal": "black", "blood": "red",
    "a lemon": "yellow", "an orange": "orange", "chocolate": "brown", "the sun": "yellow",
    "a plum": "purple", "milk": "white", "a tomato": "red", "the sea": "blue", "a frog": "green",
    "a banana": "yellow", "a cloud": "white",
}  # fmt: skip
OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "up": "down", "day": "night", "happy": "sad",
    "open": "closed", "light": "dark", "old": "new", "wet": "dry", "full": "empty",
    "early": "late", "good": "bad", "high": "low", "left": "right", "hard": "soft",
}  # fmt: skip
SOUNDS = {
    "dog": "woof", "cat": "meow", "cow": "moo", "duck": "quack", "owl": "hoot", "frog": "ribbit",
    "sheep": "baa", "lion": "roar", "pig": "oink", "bee": "buzz",
}  # fmt: skip
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()

LISTS = {
    "colors": "red blue green yellow orange purple white black brown pink".split(),
    "fruits": "apple pear plum banana lemon orange cherry grape peach mango".split(),
    "animals": "cat dog horse cow sheep duck goat rabbit fox bear".split(),
    "cities": "Paris Berlin Rome Madrid Tokyo Oslo Cairo Lima Vienna Dublin".split(),
    "days": DAYS,
    "months": MONTHS,
    "numbers": "one two three four five six seven eight nine ten".split(),
    "names": "Ada Ben Cleo Dan Eva Finn Gus Hana Ivo Jan".split(),
    "countries": "France Germany Italy Spain Japan Norway Egypt Peru Kenya India".split(),
    "vegetables": "carrot onion potato cabbage leek bean pea beet garlic pumpkin".split(),
}
NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty"
).split()

ANIMALS = "fox cat dog owl bear rabbit mouse horse frog duck goat wolf".split()
PLACES = "forest garden village castle river mountain library market harbor meadow".split()
THINGS = "key lamp book map bell coin kite boat hat apple drum letter".split()
ADJECTIVES = "small old red quiet brave clever kind tired happy shiny green golden".split()
JOBS = "doctor teacher baker pilot farmer painter nurse driver writer cook singer judge".split()
FOODS = "pizza soup bread rice cake pasta salad cheese fish noodles tea coffee".split()

FACTS = {
    "a router": "A router takes each request and sends it to a model that can answer it.",
    "a token": "A token is a small piece of text that a language model reads or writes.",
    "streaming": "Streaming means that the answer is sent piece by piece, as it is written.",
    "a prompt": "A prompt is the text that you give to a language model.",
    "a context window": "The context window is the number of tokens that a model reads at once.",
    "an API key": "An API key is a secret that tells a service who is calling.",
    "JSON": "JSON is a plain text format for data, made of objects, lists, strings and numbers.",
    "a GPU": "A GPU is a chip that does many small calculations at the same time.",
    "caching": "Caching means keeping an answer so that it need not be worked out again.",
    "temperature": "Temperature sets how random the choice of the next token is.",
    "a language model": "A language model is a program that guesses the next word of a text.",
    "a load balancer": "A load balancer shares the work between several servers.",
    "latency": "Latency is the time between a question and the start of the answer.",
    "throughput": "Throughput is how much work is done in a given time.",
    "a retry": "A retry means sending a request once more after it has failed.",
    "a rate limit": "A rate limit says how many requests somebody may send in a given time.",
    "a tool call": "A tool call is a model's request to run a function and tell it the result.",
    "an embedding": "An embedding is a list of numbers that stands for the meaning of a text.",
    "a timeout": "A timeout ends a request that takes too long.",
    "a queue": "A queue is where requests wait for their turn.",
    "a health check": "A health check asks a server whether it can take requests.",
    "a replica": "A replica is one of several equal copies of a server.",
    "a fallback": "A fallback is the model that is asked when the first one fails.",
    "Nenya": "Nenya is a router for language models. I am the small test model in it.",
    "llama.cpp": "llama.cpp is a program that runs language models on ordinary computers.",
    "ExLlamaV2": "ExLlamaV2 is a library that runs language models fast on a GPU.",
    "a stop string": "A stop string is a text at which the model stops writing.",
    "a JSON schema": "A JSON schema says which fields a JSON text has and of which type they are.",
    "a seed": "A seed is a number that makes a random choice come out the same again.",
    "a server": "A server is a program that answers requests from other programs.",
}

UNKNOWN_NOUNS = (
    "gravity democracy photosynthesis inflation justice music opera football chess evolution "
    "electricity magnetism philosophy religion history geometry algebra calculus chemistry "
    "biology physics economics marketing law medicine cancer diabetes malaria vaccine protein "
    "atom neutron galaxy comet volcano earthquake tsunami glacier desert jungle ocean island "
    "king queen pope emperor president minister senator parliament election treaty war peace "
    "tax bank loan mortgage stock bond bitcoin blockchain crypto compiler kernel pointer thread "
    "mutex closure recursion python java rust javascript typescript html css sql database linux "
    "docker kubernetes git regex algorithm heap tree graph hash encryption virus firewall "
    "browser robot drone rocket satellite telescope microscope engine turbine bridge tunnel "
    "cathedral pyramid statue painting sculpture novel poem sonnet haiku symphony guitar piano "
    "violin trumpet ballet theater cinema camera lens laser mirror clock calendar compass anchor "
    "sail whale shark dolphin penguin elephant giraffe zebra tiger eagle falcon spider beetle "
    "butterfly mosquito oak pine cactus tulip mushroom bacteria enzyme hormone neuron muscle bone "
    "liver kidney heart lung stomach skin dream memory love anger fear hope courage wisdom "
    "marriage friendship school university exam degree salary contract lawyer judge police "
    "prison army navy pilot astronaut chef recipe sushi curry lasagna wine beer whisky sugar salt "
    "vitamin calorie diet yoga marathon cricket tennis hockey golf skiing surfing sword shield "
    "armor dragon unicorn vampire ghost wizard goddess temple shrine monk prophet angel demon"
).split()
HELD_OUT_NOUNS = (
    "entropy osmosis capitalism feudalism quasar pulsar mitochondria monarchy lymph tornado "
    "canyon saxophone origami karate baseball submarine parachute hedgehog octopus cinnamon"
).split()

UNKNOWN_PEOPLE = (
    "Albert Einstein|Isaac Newton|Marie Curie|Napoleon|Julius Caesar|Cleopatra|Mozart|Beethoven|"
    "Picasso|Leonardo da Vinci|Shakespeare|Charles Dickens|Jane Austen|Mark Twain|Abraham Lincoln|"
    "George Washington|Barack Obama|Donald Trump|Joe Biden|Angela Merkel|Winston Churchill|"
    "Nelson Mandela|Gandhi|Martin Luther King|Elon Musk|Bill Gates|Steve Jobs|Alan Turing|"
    "Ada Lovelace|Charles Darwin|Galileo|Plato|Aristotle|Socrates|Taylor Swift|Michael Jackson|"
    "Madonna|Elvis Presley|Lionel Messi|Roger Federer|Michael Jordan|Tom Hanks|Harry Potter|"
    "Sherlock Holmes|Batman|Superman|Frodo|Gandalf|Luke Skywalker|Linus Torvalds|Donald Knuth"
).split("|")
HELD_OUT_PEOPLE = (
    "Nikola Tesla|Alexander Hamilton|Vincent van Gogh|Serena Williams|Grace Hopper|Hannibal|"
    "Queen Victoria|Immanuel Kant|Bruce Lee|James Bond"
).split("|")

STORY_WORDS = ADJECTIVES + THINGS + ANIMALS + PLACES
COMMON = (
    "the a is this that it was are on in my your not of and to for you hello world can will what "
    "how good day test here there we they he she have has like with all one two now yes no me i"
).split()
SYLLABLES = (
    "ba be bi bo bu da de di do du fa fe fi fo ga ge go gu ha hi ho ja jo ju ka ke ki ko la le li "
    "lo lu ma me mi mo mu na ne ni no nu pa pe pi po ra re ri ro ru sa se si so su ta te ti to tu "
    "va ve vi vo wa we wi xa xi xo ya yo za ze zi zo bra cre dri flo gri klu pra ste tri blor wex "
    "quin thra shol ch th sh nd rk lm st x z q"
).split()
