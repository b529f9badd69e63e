-- ttl: lets results that would stay for ever end by themselves.
--
-- KEYS[1]  the control hash      KEYS[2…] results
-- ARGV[1]  the caller's epoch
-- ARGV[2]  the TTL, ms
-- ARGV[3]  '1': a dry run, which writes nothing; neither epoch nor pause matters
-- then of each result its stamp (stamp.lua): length, head, tail
--
-- Returns 'stale' or 'paused' as expire.lua does: nothing was touched. Else a text
-- with a letter for each result: '1' it has got the TTL, 't' it had one and keeps
-- it, '0' not there, 'c' it had none, but was written again meanwhile, and is left.
local dry = ARGV[3] == '1'
local control = call('HMGET', KEYS[1], 'epoch', 'paused')
if not dry and control[1] ~= ARGV[1] then
  return 'stale'
end
if not dry and control[2] then
  return 'paused'
end
local letters = ''
for i = 2, #KEYS do
  local letter = 't'
  local ttl = call('PTTL', KEYS[i])
  if ttl == -2 then
    letter = '0'
  elseif ttl == -1 then
    local at = 4 + 3 * (i - 2)
    local len, head, tail = stamp(KEYS[i])
    if head ~= ARGV[at + 1] or tail ~= ARGV[at + 2] or len ~= tonumber(ARGV[at]) then
      letter = 'c'
    else
      letter = '1'
      if not dry then
        call('PEXPIRE', KEYS[i], ARGV[2])
      end
    end
  end
  letters = letters .. letter
end
return letters
