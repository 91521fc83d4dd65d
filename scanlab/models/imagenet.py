"""Names of the 1000 classes of ImageNet-1k, in the order of the logits."""

_NAMES = """
tench; goldfish; great white shark; tiger shark; hammerhead shark; electric ray; stingray; rooster; hen; ostrich;
brambling; goldfinch; house finch; junco; indigo bunting; robin; bulbul; jay; magpie; chickadee; dipper (bird); kite
(bird); bald eagle; vulture; great grey owl; fire salamander; common newt; eft; spotted salamander; axolotl; bullfrog;
tree frog; tailed frog; loggerhead turtle; leatherback turtle; mud turtle; terrapin; box turtle; banded gecko; green
iguana; anole; whiptail lizard; agama; frilled lizard; alligator lizard; Gila monster; green lizard; chameleon; Komodo
dragon; Nile crocodile; American alligator; triceratops; worm snake; ring-necked snake; hognose snake; green snake;
king snake; garter snake; water snake; vine snake; night snake; boa constrictor; rock python; Indian cobra; green
mamba; sea snake; horned viper; diamondback rattlesnake; sidewinder; trilobite; harvestman; scorpion; black-and-gold
garden spider; barn spider; garden spider; black widow; tarantula; wolf spider; tick; centipede; black grouse;
ptarmigan; ruffed grouse; prairie chicken; peacock; quail; partridge; African grey parrot; macaw; sulphur-crested
cockatoo; lorikeet; coucal; bee-eater; hornbill; hummingbird; jacamar; toucan; drake; red-breasted merganser; goose;
black swan; tusker; echidna; platypus; wallaby; koala; wombat; jellyfish; sea anemone; brain coral; flatworm;
nematode; conch; snail; slug; sea slug; chiton; chambered nautilus; Dungeness crab; rock crab; fiddler crab; king
crab; American lobster; spiny lobster; crayfish; hermit crab; isopod; white stork; black stork; spoonbill; flamingo;
little blue heron; great egret; bittern; crane (bird); limpkin; gallinule; coot; bustard; ruddy turnstone; dunlin;
redshank; dowitcher; oystercatcher; pelican; king penguin; albatross; grey whale; killer whale; dugong; sea lion;
Chihuahua; Japanese spaniel; Maltese; Pekinese; Shih Tzu; Blenheim spaniel; papillon; toy terrier; Rhodesian
ridgeback; Afghan hound; basset; beagle; bloodhound; bluetick; black-and-tan coonhound; Walker hound; English
foxhound; redbone; borzoi; Irish wolfhound; Italian greyhound; whippet; Ibizan hound; Norwegian elkhound; otterhound;
Saluki; Scottish deerhound; Weimaraner; Staffordshire bull terrier; American Staffordshire terrier; Bedlington
terrier; Border terrier; Kerry blue terrier; Irish terrier; Norfolk terrier; Norwich terrier; Yorkshire terrier;
wire-haired fox terrier; Lakeland terrier; Sealyham terrier; Airedale; cairn; Australian terrier; Dandie Dinmont;
Boston bull; miniature schnauzer; giant schnauzer; standard schnauzer; Scotch terrier; Tibetan terrier; silky terrier;
soft-coated wheaten terrier; West Highland white terrier; Lhasa; flat-coated retriever; curly-coated retriever; golden
retriever; Labrador retriever; Chesapeake Bay retriever; German short-haired pointer; vizsla; English setter; Irish
setter; Gordon setter; Brittany spaniel; clumber; English springer; Welsh springer spaniel; cocker spaniel; Sussex
spaniel; Irish water spaniel; kuvasz; schipperke; groenendael; malinois; briard; kelpie; komondor; Old English
sheepdog; Shetland sheepdog; collie; Border collie; Bouvier des Flandres; Rottweiler; German shepherd; Doberman;
miniature pinscher; Greater Swiss Mountain dog; Bernese mountain dog; Appenzeller; EntleBucher; boxer; bull mastiff;
Tibetan mastiff; French bulldog; Great Dane; Saint Bernard; husky; malamute; Siberian husky; dalmatian; affenpinscher;
basenji; pug; Leonberg; Newfoundland; Great Pyrenees; Samoyed; Pomeranian; chow; keeshond; Brabancon griffon;
Pembroke; Cardigan; toy poodle; miniature poodle; standard poodle; Mexican hairless; timber wolf; white wolf; red
wolf; coyote; dingo; dhole; African hunting dog; hyena; red fox; kit fox; Arctic fox; grey fox; tabby cat; tiger cat;
Persian cat; Siamese cat; Egyptian cat; cougar; lynx; leopard; snow leopard; jaguar; lion; tiger; cheetah; brown bear;
American black bear; polar bear; sloth bear; mongoose; meerkat; tiger beetle; ladybird; ground beetle; long-horned
beetle; leaf beetle; dung beetle; rhinoceros beetle; weevil; fly; bee; ant; grasshopper; cricket; stick insect;
cockroach; mantis; cicada; leafhopper; lacewing; dragonfly; damselfly; red admiral; ringlet; monarch; cabbage
butterfly; sulphur butterfly; lycaenid; starfish; sea urchin; sea cucumber; cottontail rabbit; hare; Angora rabbit;
hamster; porcupine; fox squirrel; marmot; beaver; guinea pig; sorrel horse; zebra; hog; wild boar; warthog;
hippopotamus; ox; water buffalo; bison; ram; bighorn; ibex; hartebeest; impala; gazelle; dromedary; llama; weasel;
mink; polecat; black-footed ferret; otter; skunk; badger; armadillo; three-toed sloth; orangutan; gorilla; chimpanzee;
gibbon; siamang; guenon; patas monkey; baboon; macaque; langur; colobus; proboscis monkey; marmoset; capuchin; howler
monkey; titi; spider monkey; squirrel monkey; ring-tailed lemur; indri; Indian elephant; African elephant; lesser
panda; giant panda; barracouta; eel; coho salmon; rock beauty; anemone fish; sturgeon; garfish; lionfish; pufferfish;
abacus; abaya; academic gown; accordion; acoustic guitar; aircraft carrier; airliner; airship; altar; ambulance;
amphibious vehicle; analog clock; apiary; apron; waste bin; assault rifle; backpack; bakery; balance beam; balloon;
ballpoint pen; Band-Aid; banjo; banister; barbell; barber chair; barbershop; barn; barometer; barrel; wheelbarrow;
baseball; basketball; bassinet; bassoon; bathing cap; bath towel; bathtub; station wagon; lighthouse; beaker;
bearskin; beer bottle; beer glass; bell tower; bib; tandem bicycle; bikini; ring binder; binoculars; birdhouse;
boathouse; bobsled; bolo tie; bonnet; bookcase; bookshop; bottle cap; bow; bow tie; brass plaque; brassiere;
breakwater; breastplate; broom; bucket; buckle; bulletproof vest; bullet train; butcher shop; taxi; cauldron; candle;
cannon; canoe; can opener; cardigan; car mirror; carousel; carpenter's kit; carton; car wheel; cash machine; cassette;
cassette player; castle; catamaran; CD player; cello; mobile phone; chain; chain-link fence; chain mail; chainsaw;
chest; chiffonier; chime; china cabinet; Christmas stocking; church; cinema; cleaver; cliff dwelling; cloak; clog;
cocktail shaker; coffee mug; coffeepot; coil; combination lock; computer keyboard; confectionery; container ship;
convertible; corkscrew; cornet; cowboy boot; cowboy hat; cradle; crane (machine); crash helmet; crate; cot; slow
cooker; croquet ball; crutch; cuirass; dam; desk; desktop computer; dial telephone; nappy; digital clock; digital
watch; dining table; dishcloth; dishwasher; disc brake; dock; dog sled; dome; doormat; drilling platform; drum;
drumstick; dumbbell; Dutch oven; electric fan; electric guitar; electric locomotive; entertainment centre; envelope;
espresso machine; face powder; feather boa; filing cabinet; fireboat; fire engine; fire screen; flagpole; flute;
folding chair; football helmet; forklift; fountain; fountain pen; four-poster; freight car; French horn; frying pan;
fur coat; refuse lorry; gas mask; petrol pump; goblet; go-kart; golf ball; golf cart; gondola; gong; gown; grand
piano; greenhouse; grille; grocery store; guillotine; hairslide; hair spray; half track; hammer; hamper; hair dryer;
hand-held computer; handkerchief; hard disk; harmonica; harp; harvester; hatchet; holster; home theatre; honeycomb;
hook; hoop skirt; horizontal bar; horse cart; hourglass; iPod; iron; jack-o'-lantern; jeans; jeep; T-shirt; jigsaw
puzzle; rickshaw; joystick; kimono; knee pad; knot; lab coat; ladle; lampshade; laptop; lawn mower; lens cap; letter
opener; library; lifeboat; lighter; limousine; ocean liner; lipstick; loafer; lotion; loudspeaker; loupe; sawmill;
magnetic compass; mailbag; letterbox; maillot; one-piece swimsuit; manhole cover; maraca; marimba; mask; matchstick;
maypole; maze; measuring cup; medicine chest; megalith; microphone; microwave; military uniform; milk can; minibus;
miniskirt; minivan; missile; mitten; mixing bowl; mobile home; Model T; modem; monastery; monitor; moped; mortar;
mortarboard; mosque; mosquito net; motor scooter; mountain bike; mountain tent; computer mouse; mousetrap; removal
van; muzzle; nail; neck brace; necklace; nipple; notebook computer; obelisk; oboe; ocarina; odometer; oil filter;
organ; oscilloscope; overskirt; ox cart; oxygen mask; packet; paddle; paddle wheel; padlock; paintbrush; pyjamas;
palace; pan pipes; paper towel; parachute; parallel bars; park bench; parking meter; passenger car; patio; payphone;
pedestal; pencil case; pencil sharpener; perfume; Petri dish; photocopier; plectrum; Pickelhaube; picket fence; pickup
truck; pier; piggy bank; pill bottle; pillow; ping-pong ball; pinwheel; pirate ship; pitcher; plane (tool);
planetarium; plastic bag; plate rack; plough; plunger; Polaroid camera; pole; police van; poncho; billiard table; soda
bottle; plant pot; potter's wheel; power drill; prayer rug; printer; prison; projectile; projector; puck; punching
bag; purse; quill; quilt; racing car; racket; radiator; radio; radio telescope; rain barrel; recreational vehicle;
reel; reflex camera; refrigerator; remote control; restaurant; revolver; rifle; rocking chair; rotisserie; rubber;
rugby ball; ruler; running shoe; safe; safety pin; salt shaker; sandal; sarong; saxophone; scabbard; scales; school
bus; schooner; scoreboard; screen; screw; screwdriver; seat belt; sewing machine; shield; shoe shop; shoji; shopping
basket; shopping trolley; shovel; shower cap; shower curtain; ski; ski mask; sleeping bag; slide rule; sliding door;
slot machine; snorkel; snowmobile; snowplough; soap dispenser; soccer ball; sock; solar dish; sombrero; soup bowl;
space bar; space heater; space shuttle; spatula; speedboat; spider web; spindle; sports car; spotlight; stage; steam
locomotive; steel arch bridge; steel drum; stethoscope; stole; stone wall; stopwatch; stove; strainer; tram;
stretcher; studio couch; stupa; submarine; suit; sundial; sunglass; sunglasses; sunscreen; suspension bridge; swab;
sweatshirt; swimming trunks; swing; switch; syringe; table lamp; tank; tape player; teapot; teddy bear; television;
tennis ball; thatched roof; theatre curtain; thimble; threshing machine; throne; tile roof; toaster; tobacconist;
toilet seat; torch; totem pole; tow truck; toy shop; tractor; articulated lorry; tray; trench coat; tricycle;
trimaran; tripod; triumphal arch; trolleybus; trombone; tub; turnstile; typewriter keyboard; umbrella; unicycle;
upright piano; vacuum cleaner; vase; vault; velvet; vending machine; vestment; viaduct; violin; volleyball; waffle
iron; wall clock; wallet; wardrobe; warplane; washbasin; washing machine; water bottle; water jug; water tower;
whiskey jug; whistle; wig; window screen; window shade; Windsor tie; wine bottle; wing; wok; wooden spoon; wool; worm
fence; wreck; yawl; yurt; website; comic book; crossword; street sign; traffic light; book jacket; menu; plate;
guacamole; consomme; hot pot; trifle; ice cream; ice lolly; French loaf; bagel; pretzel; cheeseburger; hot dog; mashed
potato; head cabbage; broccoli; cauliflower; courgette; spaghetti squash; acorn squash; butternut squash; cucumber;
artichoke; bell pepper; cardoon; mushroom; Granny Smith apple; strawberry; orange; lemon; fig; pineapple; banana;
jackfruit; custard apple; pomegranate; hay; carbonara; chocolate sauce; dough; meat loaf; pizza; potpie; burrito; red
wine; espresso; cup; eggnog; alp; bubble; cliff; coral reef; geyser; lakeside; promontory; sandbar; seashore; valley;
volcano; baseball player; groom; scuba diver; rapeseed; daisy; yellow lady's slipper; corn; acorn; rose hip; horse
chestnut seed; coral fungus; agaric; gyromitra; stinkhorn; earthstar; hen-of-the-woods; bolete; ear of corn; toilet
tissue
"""

CLASSES = tuple(" ".join(name.split()) for name in _NAMES.split(";"))
